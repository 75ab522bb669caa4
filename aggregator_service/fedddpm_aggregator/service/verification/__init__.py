"""Whether the whole history is what was signed and summed."""
