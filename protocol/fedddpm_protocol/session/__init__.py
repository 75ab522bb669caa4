"""One secure sum: the institution's state machine, the aggregator's rules, and the sets they share."""
