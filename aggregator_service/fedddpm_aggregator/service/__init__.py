"""Use cases: load, decide, persist, each in one transaction."""
