"""What an institution looks at round after round and stops for: alarms, its own share, sums that are false."""
