"""Writing files whole or not at all, and reading private and TOML files."""
