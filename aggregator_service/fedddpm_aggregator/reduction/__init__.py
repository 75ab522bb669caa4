"""Masked chunks to opened sums, by threads or on Ray."""
