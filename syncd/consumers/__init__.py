"""Events go out: one delivery loop per consumer, and the kinds of consumers there are."""
