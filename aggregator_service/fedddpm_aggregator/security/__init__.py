"""Key files and secrets of the server and its operators, and signatures under their own requests."""
