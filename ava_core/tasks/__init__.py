"""Benchmarks: lm-eval tasks on our own models, and two tasks made from held-out text.

lm-eval takes seconds to import, so only the modules that need it import it, and only where there are tasks.
"""
