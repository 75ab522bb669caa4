"""One secure sum from JOIN to the published model."""
