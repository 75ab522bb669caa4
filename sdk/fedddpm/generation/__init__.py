"""Images out of a trained network."""
