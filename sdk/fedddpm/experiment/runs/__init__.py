"""Running a study: institutions, workers, baselines, scores."""
