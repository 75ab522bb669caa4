"""Whole studies on one machine: institutions, rounds with the real secure aggregation, baselines, scores, a report."""
