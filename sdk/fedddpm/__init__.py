"""Federated training of a diffusion model, from an institution's side."""
