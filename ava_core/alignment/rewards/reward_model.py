"""The score of a reward model (`ava reward`) as a reward: the higher, the better the answer; in no fixed range."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ava_core.alignment.conversation import Conversation, Message, RowFault
from ava_core.alignment.rewards.answer import Answer
from ava_core.alignment.tokens import encode_conversation
from ava_core.data.tokenizer import load_tokenizer
from ava_core.errors import AvaError, ConfigError, first_line
from ava_core.models import EnhancedMoEForSequenceClassification
from ava_core.models.pretrained import load_pretrained
from ava_core.runtime import manifest

STEP = "reward"
BATCH = 32
"""Answers that are scored at once."""


class RewardModel:
    """Scores answers as its training scored them: on the last token of the conversation, by its own chat template.

    Args:
        folder: output of `ava reward`.

    Raises:
        ConfigError: it is no such.
        IntegrityError: it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        digest_of_model(folder)
        self.folder = folder

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """The score of each answer. One that wasn't ended counts as if it were; of a conversation that is longer than
        the model's context the end is read."""
        limit = self._model.config.max_position_embeddings
        rows = [self._tokens(answer)[-limit:] for answer in answers]
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        scores = np.zeros(len(rows))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            scores[chosen] = self._score([rows[number] for number in chosen])
        return scores.tolist()

    def _tokens(self, answer: Answer) -> list[int]:
        said = Conversation("", (*answer.prompt, Message("assistant", answer.text)))
        try:
            return encode_conversation(self._tokenizer, said).tokens.tolist()
        except RowFault as fault:
            raise AvaError(f"reward model: {fault}") from fault

    @torch.inference_mode()
    def _score(self, rows: Sequence[list[int]]) -> np.ndarray:
        width = max(map(len, rows))
        padding = self._model.config.pad_token_id or 0
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        tokens = torch.tensor([row + [padding] * (width - len(row)) for row in rows])
        return self._model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, 0].double().numpy()

    @cached_property
    def _model(self) -> Any:
        return load_pretrained(EnhancedMoEForSequenceClassification, self.folder)[0].float().eval()

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder)


def digest_of_model(folder: Path) -> str:
    """The digest of a reward model's folder, every byte checked; raises as `RewardModel`."""
    try:
        return manifest.verify(folder, STEP).digest
    except ConfigError:
        raise
    except AvaError as error:
        if type(error) is not AvaError:
            raise
        raise ConfigError(f"reward model {folder}: {first_line(error)}: give the output of `ava reward`") from error
