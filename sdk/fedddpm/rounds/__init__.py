"""Taking part: one round after the other, against what the root and the aggregator signed."""
