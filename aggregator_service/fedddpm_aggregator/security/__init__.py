"""Keys and secrets in files, signed requests, and what messages may repeat."""
