"""The web page for the person who runs a federation: what the aggregator knows anyway, read only."""
