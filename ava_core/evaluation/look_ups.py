"""What an index is worth, in the step: how well it finds the answers of questions, and how fast."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.config.evaluate import RetrievalMeasurement
from ava_core.errors import AvaError
from ava_core.files import write_json_lines
from ava_core.progress import Progress
from ava_core.retrieval.manifest import read_manifest as read_index
from ava_core.retrieval.measuring import Measured, measure
from ava_core.retrieval.passage import Passage
from ava_core.retrieval.questions import Question, make_questions, read_questions
from ava_core.retrieval.retriever import Retriever
from ava_core.runtime.manifest import read as read_manifest

log = logging.getLogger(__name__)
FILE = "retrieval.jsonl"
"""In the output: each question, and what was found for it."""
PREFIX = "retrieval_"
SHOWN = 5
"""Questions with their passages in evaluation.json, for the report."""
EXCERPT = 400
"""Characters of a passage there."""


@dataclass
class LookUps:
    """The questions of one evaluation and what was found for them.

    Attributes:
        retriever: of the index.
        digest: of the index's folder, which tells it from all others.
        questions: in their order.
        results: of each way to search, the default one first.
    """

    retriever: Retriever
    digest: str
    questions: list[Question]
    results: list[Measured]

    @classmethod
    def open(cls, config: RetrievalMeasurement, index: Path, model: Path, seed: int, threads: int) -> LookUps:
        """Open the index and find its questions.

        Args:
            config: the section `evaluate.retrieval`.
            index: output of `ava index`.
            model: folder of the evaluated model, for an index whose vectors are a model's.
            seed: of questions that are made.
            threads: of the embedding.

        Raises:
            AvaError: the index or the questions can't be read, the embedding is another, or there is no question.
        """
        retriever = Retriever.open(index, model=model if _is_of_a_model(index) else None, threads=threads, verify=True)
        if config.questions is not None:
            questions = read_questions(Path(config.questions))
        else:
            questions = make_questions(retriever.index.passages, config.count, seed)
        if not questions:
            raise AvaError(f"{index}: no question can be made of its passages: set evaluate.retrieval.questions")
        return cls(retriever, read_manifest(index).digest, questions, [])

    def run(self, progress: Progress) -> None:
        """Ask all questions."""
        with progress.task("looking up", 3 * len(self.questions)) as advance:
            self.results = measure(self.retriever, self.questions, advance)

    @property
    def figures(self) -> dict[str, float]:
        """Those of the default way without its name, those of the others with it."""
        first, *others = self.results
        named = {f"{PREFIX}{one.mode}_{name}": value for one in others for name, value in one.figures.items()}
        return {f"{PREFIX}{name}": value for name, value in first.figures.items()} | named

    @property
    def timings(self) -> dict[str, float]:
        return {f"{PREFIX}{name}": value for name, value in self.results[0].timings.items()}

    def contents(self) -> dict[str, Any]:
        """For evaluation.json: the index, the figures of each way, and some questions with their passages."""
        first = self.results[0]
        return {
            "retrieval": {
                "index": self.digest,
                "embedding": self.retriever.index.manifest.embedding,
                "passages": len(self.retriever.index),
                "questions": len(self.questions),
                "figures": {one.mode: one.figures for one in self.results},
                "shown": [self._shown(first, number) for number in range(min(SHOWN, len(self.questions)))],
            }
        }

    def write(self, output: Path) -> None:
        """A line per question: what it was, and where its answer stood in each way to search."""
        write_json_lines(
            output / FILE,
            (
                {
                    **question.to_json(),
                    "rank": {one.mode: one.ranks[number] for one in self.results},
                    "found": {one.mode: one.found[number] for one in self.results},
                }
                for number, question in enumerate(self.questions)
            ),
        )

    def _shown(self, measured: Measured, number: int) -> dict[str, Any]:
        found = [self._excerpt(passage) for passage in measured.found[number][:SHOWN]]
        return {**self.questions[number].to_json(), "rank": measured.ranks[number], "found": found}

    def _excerpt(self, number: int) -> dict[str, Any]:
        passage: Passage = self.retriever.index.passages[number]
        return {"document": passage.document, "heading": passage.heading, "text": passage.text[:EXCERPT]}


def _is_of_a_model(index: Path) -> bool:
    return read_index(index).embedding.startswith("model:")
