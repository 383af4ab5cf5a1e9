"""What a datastore of the training text is worth to the float model (kNN-LM), in the step.

Temperature and lambda are those that lose least on the validation split; the figures are of the test split. The
datastore is of the training split alone, without its documents that repeat a scored one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ava_core.config.evaluate import EvaluateConfig
from ava_core.data.batches import bits_per_byte
from ava_core.data.reencoding import ModelText, open_text
from ava_core.data.shards import ShardedSplit, document_names
from ava_core.errors import AvaError
from ava_core.generation.loading import load_model
from ava_core.progress import Progress
from ava_core.retrieval.knn.datastore import Datastore
from ava_core.retrieval.knn.duplicates import repeated
from ava_core.retrieval.knn.kept import KeptRows
from ava_core.retrieval.knn.mixing import TEMPERATURES, Mixture
from ava_core.retrieval.knn.states import Reader
from ava_core.retrieval.vectors_build import library

log = logging.getLogger(__name__)
SPLITS = ("validation", "test")
NAMED_DOCUMENTS = 5
"""Documents that were left out whose names are told, at most."""


@dataclass
class NearestTokens:
    """The measurement of one evaluation.

    Attributes:
        neighbours: of each token.
        model: folder of the float model.
        shards: whose splits are read.
        sequence_length: tokens of a window.
        batch_size: windows at once.
        state: folder for what is made.
        threads: of the model and the search.
        figures: for metrics.json; empty before `run`.
        timings: likewise.
        left_out: names of the training documents that repeat a scored one.
    """

    neighbours: int
    model: Path
    shards: Path
    sequence_length: int
    batch_size: int
    state: Path
    threads: int
    figures: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def open(
        cls, config: EvaluateConfig, model: Path, shards: Path, sequence_length: int, state: Path, threads: int
    ) -> NearestTokens | None:
        """What the section `evaluate.knn` asks for; None where it asks for nothing."""
        if not config.knn.neighbours:
            return None
        folder = state / "knn"
        folder.mkdir(exist_ok=True)
        return cls(config.knn.neighbours, model, shards, sequence_length, config.batch_size, folder, threads)

    def run(self, progress: Progress) -> None:
        """Make the datastore, choose on the validation split, measure on the test split.

        Raises:
            AvaError: all documents of the training split repeat a scored one.
        """
        library().omp_set_num_threads(self.threads)
        scored = {name: open_text(self.model, self.shards, name) for name in SPLITS}
        tokens = self._training_tokens(scored)
        model, _ = load_model(self.model, self.threads)
        reader = Reader(
            model,
            sequence_length=self.sequence_length,
            boundary_token_id=scored["test"].split.boundary_token_id,
            batch_size=self.batch_size,
        )
        with progress.task("making the datastore", len(tokens)) as advance:
            datastore = Datastore.build(self.state / "datastore", reader, tokens, advance)
        found = {name: self._look_up(name, text.split, reader, datastore, progress) for name, text in scored.items()}
        mixture = Mixture.choose(*found["validation"])
        nats_T, _ = found["test"]
        size = scored["test"].split.num_bytes
        alone, mixed = (bits_per_byte(float(part.sum()), size) for part in (nats_T, mixture.nats(*found["test"])))
        self.figures = {
            "knn_test_bits_per_byte": mixed,
            "knn_gain_bits_per_byte": alone - mixed,
            "knn_lambda": mixture.weight,
            "knn_temperature": mixture.temperature,
            "knn_datastore_tokens": len(tokens),
            "knn_documents_left_out": len(self.left_out),
        }
        log.info("evaluate: with the datastore %.4f bits per byte, %.4f without", mixed, alone)

    def contents(self) -> dict[str, Any]:
        """For evaluation.json."""
        names = self.left_out[:NAMED_DOCUMENTS]
        return {"knn": {**self.figures, "neighbours": self.neighbours, "left_out": names}}

    def _training_tokens(self, scored: dict[str, ModelText]) -> np.ndarray:
        """The training split's stream without the documents that repeat a scored one."""
        training = open_text(self.model, self.shards, "train")
        documents = [text for part in scored.values() for text in part.documents]
        out = repeated(training.documents, documents)
        names = document_names(self.shards, "train")
        self.left_out = [names[number] for number in out]
        tokens = training.split.tokens
        if not out:
            return tokens
        log.info("evaluate: %d documents of the training split repeat a scored one: not in the datastore", len(out))
        if len(out) == len(names):
            raise AvaError(
                f"{self.shards}: every document of the training split repeats one of the validation or test split:"
                " no datastore can be made for evaluate.knn: give other text, or set evaluate.knn.neighbours to 0"
            )
        starts = [*training.split.document_starts.tolist(), len(tokens)]
        return np.concatenate([tokens[starts[n] : starts[n + 1]] for n in range(len(names)) if n not in set(out)])

    def _look_up(
        self, name: str, split: ShardedSplit, reader: Reader, datastore: Datastore, progress: Progress
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of each token of a split the model's loss, (T,), and p_knn at each temperature, (T, C)."""
        kept = KeptRows(self.state / f"{name}.npy", np.float64, (1 + len(TEMPERATURES),))
        with progress.task(f"looking up the {name} split's tokens", split.num_tokens) as advance:
            for keys, nats in reader.keys_and_nats(split.tokens, kept.batches):
                targets = split.tokens[kept.rows : kept.rows + len(keys)]
                probability = datastore.target_probabilities(keys, targets, self.neighbours)
                kept.append(np.column_stack([nats, probability]))
                advance(kept.rows)
        rows = kept.finish()
        self.timings = {"knn_ms_per_token": 1000 * kept.seconds / len(rows)}
        return rows[:, 0], rows[:, 1:]
