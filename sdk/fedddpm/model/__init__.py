"""The network, its diffusion, its parts as vectors, and its files."""
