"""Seeds of single purposes, derived from one."""

import hashlib


def derived_seed(*what: int | str) -> int:
    """A seed for one purpose: 63 bits of a hash, so that neighbouring steps get unrelated generators."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8]) >> 1
