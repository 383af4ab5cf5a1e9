"""From sources to shards of conversations: the library function behind `ava preprocess --for sft`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.alignment.conversation import Conversation
from ava_core.alignment.gathering import divide_among_splits, gather
from ava_core.alignment.making import Prepared, ShardsInMaking
from ava_core.alignment.tokens import EncodedConversation, encode_conversation
from ava_core.config.conversations import ConversationsConfig

if TYPE_CHECKING:
    from ava_core.progress import Progress


def prepare(
    config: ConversationsConfig,
    *,
    shards: Path,
    data: Path | None,
    output: Path,
    state: Path,
    progress: Progress,
) -> Prepared:
    """Find conversations, divide them into splits, and write them as tokens with what is learnt of them.

    Conversations of a document that the text of `shards` holds are in the split that it is in there, so that nothing
    that a model is measured by was learnt before, in pretraining or here.

    Args:
        config: the section `conversations`.
        shards: output of `ava preprocess`, whose tokenizer the model has.
        data: the folder given with --data; may be None if no source needs it.
        output: an empty folder: gets `train/ validation/ test/ conversations.json dataset_dict.json tokenizer/
            README.md left_out.jsonl`.
        state: survives a killed run with the same inputs and configuration.
        progress: shows progress.

    Raises:
        AvaError: a source can't be read, a row holds no conversation (up to 20 are named), or too few are left.
        ConfigError: the tokenizer has no chat template, and can't get one.
    """
    work = ShardsInMaking(config, "sft", shards, output, state, progress)
    gathered = gather(config, data, work.tokenizer, config.max_tokens)
    for name, given in divide_among_splits(gathered.conversations, config, shards).items():
        work.write(name, given, partial(_one, given))
    return work.finish(gathered)


def _one(given: Sequence[Conversation], tokenizer: Any, number: int) -> tuple[EncodedConversation, ...]:
    return (encode_conversation(tokenizer, given[number]),)
