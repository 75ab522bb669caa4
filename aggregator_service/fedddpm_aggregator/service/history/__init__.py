"""Finished attempts as records, for tables and totals."""
