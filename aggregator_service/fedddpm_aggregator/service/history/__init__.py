"""Finished attempts as records, for people and for sums."""
