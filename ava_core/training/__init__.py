"""Training with DeepSpeed: optimisers, schedules, the engine, durable checkpoints, the history and its plot.

Importing this package imports nothing heavy; `ava_core.training.train.train` is the way in.
"""
