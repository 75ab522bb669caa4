"""Local training on one card or several, resumable at any step."""
