"""Memory: what a training will take, which layers recompute, and what happens when it runs out."""
