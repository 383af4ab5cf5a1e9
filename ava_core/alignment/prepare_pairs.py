"""From sources to shards of pairs of answers: the library function behind `ava preprocess --for preference`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.alignment.conversation import Conversation
from ava_core.alignment.gathering import divide_among_splits, drawn, gather
from ava_core.alignment.making import Prepared, ShardsInMaking
from ava_core.alignment.pairs import Opponent, encode_pair
from ava_core.alignment.shapes import PAIR_SHAPES
from ava_core.alignment.tokens import EncodedConversation
from ava_core.config.preferences import PreferencesConfig

if TYPE_CHECKING:
    from ava_core.progress import Progress


def prepare_pairs(
    config: PreferencesConfig,
    *,
    shards: Path,
    data: Path | None,
    model: Path | None,
    seed: int,
    output: Path,
    state: Path,
    progress: Progress,
) -> Prepared:
    """As `prepare.prepare`, with two rows for each pair: the preferred answer's first.

    Args:
        config: the section `preferences`.
        model: whose samples are the other answers, where the rows have none; None if that isn't asked for.
        seed: of what is drawn.
        shards, data, output, state, progress: as in `prepare`.

    Raises:
        as `prepare`, and ConfigError: a model is needed, and none is given.
    """
    work = ShardsInMaking(config, "preference", shards, output, state, progress)
    gathered = gather(config, data, work.tokenizer, config.max_tokens // 2, PAIR_SHAPES)
    opponent = Opponent(config, model, seed, progress)
    opponent.check(gathered.conversations)
    for name, all_of_it in divide_among_splits(gathered.conversations, config, shards).items():
        given = drawn(all_of_it, name, config.max_pairs, seed)
        rejected = work.texts(f"rejected-{name}", partial(opponent.rejected, name, given, work.tokenizer))
        work.write(name, given, partial(_two, given, rejected, config.max_tokens))
    return work.finish(gathered)


def _two(
    given: Sequence[Conversation], rejected: Sequence[str], max_tokens: int, tokenizer: Any, number: int
) -> tuple[EncodedConversation, ...]:
    return encode_pair(tokenizer, given[number], rejected[number], max_tokens)
