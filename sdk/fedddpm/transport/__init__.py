"""The signed HTTPS way to the aggregator."""
