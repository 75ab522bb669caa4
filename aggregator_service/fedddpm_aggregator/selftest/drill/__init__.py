"""Attacks on an installation's own programs, with throwaway keys: what was tried, who noticed, what leaked."""
