"""The real secure aggregation of a round, in memory."""
