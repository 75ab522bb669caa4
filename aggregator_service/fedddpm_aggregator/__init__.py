"""The aggregator of a fedddpm federation."""
