"""What a study consists of: settings, presets, runs, images."""
