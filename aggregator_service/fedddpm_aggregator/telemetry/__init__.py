"""What the process emits: logs, counters, traces, signs of life."""
