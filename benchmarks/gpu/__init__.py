"""Whether Ava holds on a GPU, and how fast: one command, `python -m benchmarks.gpu`, see `__main__`."""
