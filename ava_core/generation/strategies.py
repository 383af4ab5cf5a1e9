"""Names of the decoding strategies."""

from __future__ import annotations

from ava_core.errors import ConfigError

STRATEGIES = ("greedy", "beam", "nucleus", "top-k", "min-p")
"""The most probable token; beam search; sampling from the smallest set of tokens that holds `top_p` of the probability
(arXiv 1904.09751), from the `top_k` most probable ones (arXiv 1805.04833), or from those with at least `min_p` times
the probability of the most probable one (arXiv 2407.01082)."""
SAMPLED = ("nucleus", "top-k", "min-p")
"""Those that sample, so that they depend on a seed."""


def require_strategy(strategy: str) -> None:
    """Refuse an unknown strategy.

    Raises:
        ConfigError: an unknown name.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy {strategy}: must be one of {', '.join(STRATEGIES)}")


def require_streamable(strategy: str, prompts: int) -> None:
    """Refuse streaming for several prompts and for beam search.

    Raises:
        ConfigError: several prompts, or a beam.
    """
    if prompts != 1 or strategy == "beam":
        raise ConfigError("--stream: needs one prompt and a strategy other than beam, which goes back on its words")
