"""Names of the decoding strategies."""

from __future__ import annotations

from ava_core.errors import ConfigError

STRATEGIES = ("greedy", "beam", "nucleus")
"""The most probable token; beam search; sampling from the smallest set of tokens that holds `top_p` of the
probability (arXiv 1904.09751)."""


def require_strategy(strategy: str) -> None:
    """Refuse a strategy that there isn't.

    Raises:
        ConfigError: an unknown name.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy {strategy}: must be one of {', '.join(STRATEGIES)}")
