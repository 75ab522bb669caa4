"""The command ``fedddpm-aggregator``: arguments in, one use case, a few lines out."""
