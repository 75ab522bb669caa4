"""Use cases: what a request, the sweeper or a command does to the federation."""
