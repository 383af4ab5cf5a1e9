"""A reward model as a reward: it scores as it was trained to, enters the key, and can be learnt from."""

import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ava_core.alignment.conversation import Conversation, Message
from ava_core.alignment.rewards.answer import Answer
from ava_core.alignment.rewards.reward_model import BATCH, RewardModel
from ava_core.alignment.rewards.reward_set import RewardSet
from ava_core.alignment.tokens import encode_conversation
from ava_core.cli.from_model import digest_rewards
from ava_core.config.rewards import RewardEntry
from ava_core.data.tokenizer import load_tokenizer
from ava_core.errors import ConfigError, IntegrityError
from ava_core.models import EnhancedMoEForSequenceClassification
from ava_core.models.pretrained import load_pretrained
from ava_core.runtime import manifest
from tests.alignment.trainings import request_in, run
from tests.conftest import _finished

WORDS = ["king", "queen", "sword", "crown", "night", "grave", "ghost", "blood"]


@pytest.fixture(scope="module")
def scoring(tmp_path_factory, tiny_model, pair_shards):
    """A reward model that prefers answers that repeat the question's word."""
    settings = {"steps": 60, "learning_rate": 0.005, "adam_learning_rate": 0.005, "evaluate_every": 60}
    request = request_in(tmp_path_factory.mktemp("scoring") / "reward", "reward", tiny_model, pair_shards, settings)
    run(request)
    return _finished(request.output, "reward", {})


def answer(asked: str, said: str, number: int = 3) -> Answer:
    return Answer((Message("user", f"{asked} {number}"),), said)


def test_better_answers_score_higher(scoring):
    model = RewardModel(scoring)
    better = model([answer(word, f"{word} {word}", 50) for word in WORDS])
    worse = model(
        [answer(word, f"{other} {other}", 50) for word, other in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)]
    )
    assert sum(a > b for a, b in zip(better, worse, strict=True)) >= 6


def test_score_is_that_of_the_head_on_the_last_token_whoever_stands_beside_it(scoring):
    """In the order of the answers, with lengths that divide them among batches otherwise."""
    answers = [answer(WORDS[n % 8], " ".join(WORDS[: 1 + n % 7]), n) for n in range(BATCH + 5)]
    found = RewardModel(scoring)(answers)
    model = load_pretrained(EnhancedMoEForSequenceClassification, scoring)[0].eval()
    tokenizer = load_tokenizer(scoring)
    for number in (0, 6, 17, BATCH + 4):
        said = Conversation("", (*answers[number].prompt, Message("assistant", answers[number].text)))
        tokens = torch.from_numpy(encode_conversation(tokenizer, said).tokens)[None]
        with torch.no_grad():
            assert found[number] == pytest.approx(float(model(tokens).logits), abs=1e-4)


def test_of_a_conversation_that_is_too_long_the_end_is_read(scoring):
    long = answer("king", "because " * 200)
    assert len(RewardModel(scoring)([long, answer("king", "")])) == 2


def test_it_is_weighed_with_others_under_a_name_without_a_path(scoring):
    entries = [RewardEntry(model=str(scoring)), RewardEntry(name="lines", weight=0.0)]
    scores = RewardSet.from_config(entries).score([answer("king", "king king")])
    assert scores.parts.keys() == {"model", "lines"} and scores.total == scores.parts["model"]


def test_its_contents_enter_the_key(scoring):
    config = SimpleNamespace(grpo=SimpleNamespace(rewards=[RewardEntry(model=str(scoring)), RewardEntry(name="lines")]))
    assert digest_rewards("grpo")(config, {}) == {"reward_model": manifest.read(scoring).digest}


def test_what_is_no_reward_model_or_damaged_is_refused_at_once(scoring, tiny_model, tmp_path):
    refused = partial(pytest.raises, ConfigError)
    with refused(match=r"reward model .*absent.*: give the output of `ava reward`$"):
        RewardModel(tmp_path / "absent")
    with refused(match=r"reward model .*: is the output of `ava train`, not of `ava reward`"):
        RewardModel(tiny_model)
    damaged = tmp_path / "damaged"
    shutil.copytree(scoring, damaged)
    (damaged / "config.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"config.json: its bytes are not those in the manifest"):
        RewardSet.from_config([RewardEntry(model=str(damaged))])
