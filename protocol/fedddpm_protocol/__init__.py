"""The secure-aggregation protocol fedddpm/sa/2."""
