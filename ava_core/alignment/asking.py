"""What a training asks its finished model and the start, of the shards that it was trained on."""

from __future__ import annotations

from ava_core.alignment.comparison import Asked
from ava_core.alignment.held_out import read_held_out
from ava_core.alignment.material import ShardsMaterial, answer_of
from ava_core.alignment.rewards.reward_set import RewardSet
from ava_core.config.finetuning import AnsweringFineTuning


def asked_of(material: ShardsMaterial, config: AnsweringFineTuning) -> Asked:
    """The first held-out prompts, as many as `config.samples`: of conversations their first, of pairs their only one.

    Raises:
        ConfigError: a reward can't be found.
        IntegrityError: the shards can't be read.
    """
    pairs = material.shards.purpose == "preference"
    items = material.shards.read("validation")[:: 2 if pairs else 1][: config.samples]
    asked = [answer_of(item.tokens, item.learnt, material.ends) for item in items]
    return Asked(
        prompts=[prompt.tolist() for prompt, _ in asked],
        ends=[end for _, end in asked],
        authors=read_held_out(material.shards.folder, len(items), last=pairs),
        limit=material.shards.max_tokens,
        tokenizer=material.shards.folder / "tokenizer",
        rewards=RewardSet.from_config(config.rewards),
        seed=material.request.seed,
    )
