"""What everybody agrees on: methods, rosters, specifications, results, policy."""
