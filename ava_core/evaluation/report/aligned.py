"""The section on a model that was trained after its pretraining: its answers beside those of its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.errors import IntegrityError, first_line
from ava_core.files import parse_json

ANSWERS, FIGURES = "answers.jsonl", "metrics.json"
SHOWN = 6
"""Prompts whose answers are on the page: the first ones, good or bad."""
ROWS = (
    ("worth of an answer, all rewards", "sample_reward", ".3f", True),
    ("ended by itself", "ended_answers", ".1%", True),
    ("tokens of an answer", "answer_tokens", ".1f", None),
    ("repeated 4-grams in an answer", "repetition_4gram", ".3f", False),
)
"""What it is, its name with and without `start_`, its form, and whether more is better; None: neither."""
OTHER_LOSS = ("validation_margin", "validation_reward")
"""Figures of trainings whose loss isn't that of text, in nats per token."""


@dataclass(frozen=True)
class Aligned:
    """What a training left of the comparison with its start.

    Attributes:
        figures: of its metrics.json.
        answers: lines of its answers.jsonl.
    """

    figures: Mapping[str, Any]
    answers: Sequence[Mapping[str, Any]]


def read_aligned(model: Path) -> Aligned | None:
    """Of a model's folder; None if it wasn't compared with its start.

    Raises:
        IntegrityError: a file can't be read.
    """
    if not all((model / name).is_file() for name in (ANSWERS, FIGURES)):
        return None
    try:
        answers = [parse_json(line) for line in (model / ANSWERS).read_text(encoding="utf-8").splitlines()]
        figures = parse_json((model / FIGURES).read_text(encoding="utf-8"))
        found = Aligned(figures, answers)
        aligned_rows(found), aligned_answers(found)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise IntegrityError(
            f"{model}: {ANSWERS} or {FIGURES} can't be read ({first_line(error)}): restore the folder or train again"
        ) from error
    return found if answers else None


def aligned_rows(aligned: Aligned) -> list[dict[str, str]]:
    """Rows of the comparison: `label`, `name`, and as text the figure of the `start`, the `end`, of the `data` where it
    has answers, and the `change` with its `tone`."""
    figures = aligned.figures
    parts = [
        (f"of it {name.removeprefix('sample_reward_')}", name, ".3f", True)
        for name in sorted(figures)
        if name.startswith("sample_reward_")
    ]
    rows = []
    for label, name, form, more_is_better in (*ROWS[:1], *(parts if len(parts) > 1 else ()), *ROWS[1:]):
        if name not in figures or f"start_{name}" not in figures:
            continue
        start, end = figures[f"start_{name}"], figures[name]
        author = figures.get("author_reward") if name == "sample_reward" else None
        change = f"{end - start:+{form}}".replace("%", " points")
        moved = bool(float(change.split()[0]))
        tone = "" if more_is_better is None or not moved else "good" if (end > start) == more_is_better else "bad"
        rows.append(
            {
                "label": label,
                "name": name,
                "start": f"{start:{form}}",
                "end": f"{end:{form}}",
                "change": change if moved else "=",
                "tone": tone,
                "data": "" if author is None else f"{author:{form}}",
            }
        )
    return rows


def aligned_cards(aligned: Aligned) -> list[dict[str, str]]:
    """What both models' answers say of each other."""
    figures, cards = aligned.figures, []
    if "sample_wins" in figures:
        note = "of the prompts; equal ones count half"
        cards.append({"value": f"{figures['sample_wins']:.0%}", "label": "better than the start's", "note": note})
    if "kl_to_start" in figures:
        note = "of an answer's log-probability, mean over its own samples"
        cards.append({"value": f"{figures['kl_to_start']:.2f}", "label": "nats from the start", "note": note})
    return cards


def aligned_answers(aligned: Aligned) -> list[dict[str, Any]]:
    """The first prompts: `system` and `asked`, and `texts`: who gave it, the text, and what it is worth as text."""
    found = []
    for line in aligned.answers[:SHOWN]:
        messages = line["messages"]
        texts = [
            {"by": by, "text": str(line[key]["text"]), "worth": f"worth {line[key]['reward']:.3f}"}
            for by, key in (("start", "start"), ("now", "end"))
        ]
        if line.get("reference") is not None:
            texts.append({"by": "data", "text": str(line["reference"]), "worth": ""})
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        found.append({"system": system, "asked": messages[-1]["content"], "texts": texts})
    return found


def has_loss_of_text(history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the losses of a training are nats per token, to be held against that of the test split."""
    return not any(name in row for row in history for name in OTHER_LOSS)
