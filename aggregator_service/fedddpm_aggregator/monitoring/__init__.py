"""What the process says when it is asked how it is."""
