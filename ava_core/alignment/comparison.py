"""A model beside the one that it was trained from: what they answer, what that is worth, and how far apart they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ava_core.alignment.rewards.answer import Answer
from ava_core.alignment.rewards.reward_set import RewardSet, Scores
from ava_core.alignment.sampling import sample_answers
from ava_core.data.tokenizer import load_tokenizer
from ava_core.evaluation.diversity import repetition
from ava_core.files import write_json_lines

log = logging.getLogger(__name__)
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Asked:
    """Held-out prompts that both models answer.

    Attributes:
        prompts: token ids of each, up to where the answer begins.
        ends: the token that ends each one's answer.
        authors: what answers to them are judged by, the data's own answers as references.
        limit: new tokens, at most.
        tokenizer: folder of it.
        rewards: what answers are worth.
        seed: of the samples, the same for both models.
    """

    prompts: Sequence[Sequence[int]]
    ends: Sequence[int]
    authors: Sequence[Answer]
    limit: int
    tokenizer: Path
    rewards: RewardSet
    seed: int


def compare(start: Any, end: Any, asked: Asked, output: Path) -> dict[str, float]:
    """Figures of both models' samples at temperature 1; those of the start have the prefix `start_`.

    `ended_answers`: share that ends by itself; `answer_tokens`: mean length; `repetition_4gram`: see
    `ava_core.evaluation.diversity.repetition`; `sample_reward` and `sample_reward_NAME`: mean of what the samples are
    worth; `author_reward`: of the data's own answers, where there are some; `sample_wins`: share of prompts where the
    end's sample is worth more than the start's, plus half of those where it is worth the same; `kl_to_start`: mean over
    the end's samples of the difference of their log-probabilities under both, in nats per answer, an unbiased estimate
    of the divergence of the end from the start.

    Both samples of each prompt, the data's own answer and what they are worth go to `answers.jsonl`.

    Args:
        start: the model that the training began from, in evaluation mode.
        end: the finished one.
        asked: what they are asked.
        output: the finished one's folder.

    Raises:
        AvaError: a reward raises, or gives no numbers.
    """
    authors = [replace(each, text=each.reference) for each in asked.authors if each.reference is not None]
    found = {"author_reward": _mean(asked.rewards.score(authors).total)} if authors else {}
    tokenizer: Any = load_tokenizer(asked.tokenizer)
    scores: list[Scores] = []
    said: list[list[Answer]] = []
    answers: list[list[int]] = []
    for prefix, model in (("start_", start), ("", end)):
        answers = sample_answers(model, asked.prompts, asked.ends, asked.limit, asked.seed)
        said.append(_as_texts(answers, asked, tokenizer))
        scores.append(asked.rewards.score(said[-1]))
        found |= {f"{prefix}{name}": value for name, value in _figures(answers, said[-1], scores[-1]).items()}
    before, after = (np.array(each.total) for each in scores)
    found["sample_wins"] = _mean(0.5 * (np.sign(after - before) + 1))
    found["kl_to_start"] = _mean(
        [
            _log_prob(end, prompt, answer) - _log_prob(start, prompt, answer)
            for prompt, answer in zip(asked.prompts, answers, strict=True)
        ]
    )
    _write_answers(output / ANSWERS, said, scores)
    log.info(
        "align: sampled answers are worth %.3f, %.3f before%s; %.1f tokens, %.1f before; %.0f%% end by themselves,"
        " %.0f%% before; %.2f nats from the start",
        *(found["sample_reward"], found["start_sample_reward"]),
        f" and {found['author_reward']:.3f} the data's own" if authors else "",
        *(found["answer_tokens"], found["start_answer_tokens"]),
        *(100 * found["ended_answers"], 100 * found["start_ended_answers"], found["kl_to_start"]),
    )
    return found


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _as_texts(answers: list[list[int]], asked: Asked, tokenizer: Any) -> list[Answer]:
    return [
        replace(author, text=tokenizer.decode(answer, skip_special_tokens=True).strip(), ended=end in answer)
        for answer, author, end in zip(answers, asked.authors, asked.ends, strict=True)
    ]


def _write_answers(path: Path, said: list[list[Answer]], scores: list[Scores]) -> None:
    lines = [
        {
            "messages": [message.as_dict() for message in before.prompt],
            "reference": before.reference,
            "start": {"text": before.text, "reward": worth_before},
            "end": {"text": after.text, "reward": worth_after},
        }
        for before, after, worth_before, worth_after in zip(*said, *(each.total for each in scores), strict=True)
    ]
    write_json_lines(path, lines)


def _figures(answers: list[list[int]], said: list[Answer], scores: Scores) -> dict[str, float]:
    return {
        "ended_answers": _mean([answer.ended for answer in said]),
        "answer_tokens": _mean([len(answer) for answer in answers]),
        "repetition_4gram": repetition([answer.text for answer in said]),
        "sample_reward": _mean(scores.total),
        **{f"sample_reward_{name}": _mean(values) for name, values in scores.parts.items()},
    }


@torch.inference_mode()
def _log_prob(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    tokens = torch.tensor([[*prompt, *answer]])
    logits = model(tokens[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
    return -float(functional.cross_entropy(logits.float(), tokens[0, len(prompt) :], reduction="sum"))
