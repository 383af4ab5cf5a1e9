"""What attention keeps for the backward pass, which the estimate of memory counts."""

from __future__ import annotations

KEPT_PROBABILITIES = 256
"""Positions of a sequence up to which attention by explicit products keeps its probabilities for the backward pass.
Those of longer ones it computes in blocks of queries, and again in the backward pass."""
