"""What an institution tells while it works: the screen, the log, metrics."""
