"""Names of the decoding strategies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ava_core.errors import ConfigError

if TYPE_CHECKING:
    from ava_core.config.generation import GenerationConfig

STRATEGIES = ("greedy", "beam", "contrastive", "nucleus", "top-k", "min-p", "typical")
"""The most probable token; beam search; a probable token unlike the ones before it (contrastive search, arXiv
2202.06417); sampling from the smallest set of tokens that holds `top_p` of the probability (arXiv 1904.09751), from the
`top_k` most probable ones (arXiv 1805.04833), from those with at least `min_p` times the probability of the most
probable one (arXiv 2407.01082), or from those that are about as surprising as a token is on average (locally typical
sampling, arXiv 2202.00666)."""
SAMPLED = ("nucleus", "top-k", "min-p", "typical")
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


def require_texts(strategy: str, settings: GenerationConfig, number: int) -> None:
    """Refuse more texts for a prompt than a strategy finds: sampling any number, beam search one per beam, others one.

    Raises:
        ConfigError: more.
    """
    if strategy == "beam" and number > settings.num_beams:
        raise ConfigError(f"--num-return-sequences {number}: must be <= --num-beams {settings.num_beams}")
    if strategy not in ("beam", *SAMPLED) and number > 1:
        raise ConfigError(f"--num-return-sequences {number}: {strategy} finds one text: sample, or use beam")
