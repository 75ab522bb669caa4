"""Framing, keys, secret sharing, keystreams and ring arithmetic."""
