"""One secure sum: the institution's machine, the aggregator's rules, and the sets they share."""
