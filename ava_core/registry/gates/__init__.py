"""Whether a version may become champion: the bounds, the decision, and what `ava gate` writes about it."""
