"""A real round of real secure aggregation inside an installation, beside its federation and without touching it."""
