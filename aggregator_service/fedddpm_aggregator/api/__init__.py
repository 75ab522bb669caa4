"""The HTTP interface under /v1: thin endpoints."""
