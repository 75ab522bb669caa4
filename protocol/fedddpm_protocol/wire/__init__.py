"""Messages, phases and replies: what travels."""
