"""Ava: Mixture-of-Experts language models, trained as a pipeline of containerised steps."""

__version__ = "0.1.0"
