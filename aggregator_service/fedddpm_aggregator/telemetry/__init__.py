"""Logs, counters, traces and signs of life that the code writes to."""
