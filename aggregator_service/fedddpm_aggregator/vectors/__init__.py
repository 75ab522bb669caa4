"""Vectors at rest: uploads, opened sums, models."""
