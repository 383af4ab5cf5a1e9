"""The section `evaluate`: measurements."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ava_core.config.generation import GenerationConfig
from ava_core.config.section import AnyText, NonNegative, Positive, Section, Text
from ava_core.config.tasks import TaskList


class ContinuationsConfig(Section):
    """Texts that each model continues, measured against what stands there: BLEU, chrF, ROUGE, coherence and others."""

    count: NonNegative = 0
    """Texts, at most; 0: none are measured."""
    references: Text | None = None
    """JSON lines with `prompt` and `reference`, a text or a list of texts; null: passages of the test split."""
    prompt_tokens: Positive = 32
    """Tokens of a passage that are given."""
    new_tokens: Positive = 32
    """Tokens that are written, and of a passage those that follow, which are the reference."""
    strategy: Literal["greedy", "beam", "nucleus"] = "greedy"
    """How it is written; with the settings of evaluate.generation."""


class RetrievalMeasurement(Section):
    """How well an index finds what it should; measured where the evaluation is given one."""

    questions: Text | None = None
    """JSON lines with `question`, `answer` and `source`; null: lines of the index's passages with words left out."""
    count: Positive = 400
    """Questions that are made, at most."""


class NearestTokensConfig(Section):
    """Next tokens looked up in a datastore of the training text and mixed with the float model's (kNN-LM)."""

    neighbours: Annotated[int, Field(ge=0, le=16_384)] = 0
    """Contexts that are looked up for each token; 1024 in the paper. 0: it isn't measured."""


class EvaluateConfig(Section):
    """Measurements on the test split, and the report."""

    batch_size: Positive = 16
    """Windows of train.sequence_length tokens in one forward pass."""
    context: Positive | None = None
    """Also score in windows of so many tokens, longer than those of the training, and tell the loss by how much of its
    document the model has read; at most model.max_position_embeddings. null: don't."""
    prompts: Annotated[list[AnyText], Field(min_length=1)] = ["To be, or", "ROMEO\nO, she doth", "Enter the KING"]
    """Texts that the report's samples continue."""
    generation: GenerationConfig = GenerationConfig()
    continuations: ContinuationsConfig = ContinuationsConfig()
    retrieval: RetrievalMeasurement = RetrievalMeasurement()
    knn: NearestTokensConfig = NearestTokensConfig()
    tasks: TaskList = []
    """Benchmarks, of the float and each quantised model: names, YAML files, or sections with the keys of a task."""
