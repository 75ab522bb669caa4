"""Updates to ring words and opened sums to models, the same bits for everybody."""
