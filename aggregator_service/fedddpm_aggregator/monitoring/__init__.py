"""Answers to /healthz, /readyz and /metrics, and the figures of the database in them."""
