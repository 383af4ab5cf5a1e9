"""Measurements on the test split: scores, expert utilisation, samples, and the report.

Names of tensors end in their shape; `ava_core.models.shapes` has the legend.
"""
