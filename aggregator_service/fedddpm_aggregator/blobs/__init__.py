"""Vectors outside the database, each written once: in a directory, or in an S3-compatible object store."""
