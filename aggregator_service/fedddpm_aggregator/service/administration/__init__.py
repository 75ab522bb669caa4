"""What coordinators and operators do: keys, rosters, runs."""
