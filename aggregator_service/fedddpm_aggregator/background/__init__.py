"""What goes on without a request: deadlines, openings, tidying."""
