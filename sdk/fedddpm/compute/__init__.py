"""Where and how it is computed: devices, precision, seeds."""
