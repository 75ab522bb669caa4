"""Files that are whole, files that are private, and what messages may repeat of them."""
