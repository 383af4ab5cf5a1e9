"""A teacher's predictions on a token stream, in parts on the disk: which there must be, and reading them.

They are those of positions of the stream, not of windows: whatever windows a training draws, in whatever epoch and
however its curriculum cuts them, each of its positions finds its prediction. Position p predicts token p + 1.

Legend: B = sequences, S = tokens per sequence, n = positions of a part, K = the teacher's most probable tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ava_core.errors import IntegrityError, first_line
from ava_core.losses import TeacherTargets
from ava_core.runtime.digests import digest_file

PART_POSITIONS = 2**17
"""Positions in a part, what a killed run loses at most: 17 MB with K = 32."""
OPEN_PARTS = 64
"""Files that are mapped at once."""


@dataclass(frozen=True)
class Predictions:
    """The parts of a stream's predictions in a folder.

    Attributes:
        folder: of the parts.
        positions: P, one less than the stream has tokens.
        top_k: K.
        size: positions in each part but the last.
    """

    folder: Path
    positions: int
    top_k: int
    size: int = PART_POSITIONS

    @property
    def parts(self) -> int:
        """How many there are."""
        return -(-self.positions // self.size)

    def span(self, part: int) -> tuple[int, int]:
        """First position of a part, and the one after its last."""
        return part * self.size, min((part + 1) * self.size, self.positions)

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{part:05d}.safetensors"

    def digest_path(self, part: int) -> Path:
        """The file with the SHA-256 of a part, written after it."""
        return self.folder / f"part-{part:05d}.sha256"

    def is_whole(self, part: int) -> bool:
        """Whether a part is there with the bytes that were written."""
        try:
            return digest_file(self.path(part)) == self.digest_path(part).read_text().strip()
        except (OSError, ValueError):
            return False

    def read(self, starts: np.ndarray, length: int) -> TeacherTargets:
        """The predictions of windows.

        Args:
            starts: (B,), position of each window's first input.
            length: S, inputs of each window.

        Returns:
            ids (B, S, K), int32, and log-probabilities (B, S, K + 1), float32, of which each row sums to 1.

        Raises:
            IntegrityError: a part can't be read.
        """
        windows = [self._rows(int(start), int(start) + length) for start in starts]
        ids, log_probs = (torch.stack([window[i] for window in windows]) for i in (0, 1))
        # What float16 has rounded is a distribution again.
        return TeacherTargets(ids_TK=ids.int(), log_probs_TK1=log_probs.float().log_softmax(dim=-1))

    def _rows(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Those of positions `first` to `last`, that one excluded, as they were written."""
        pieces = []
        for part in range(first // self.size, (last - 1) // self.size + 1):
            begin, end = self.span(part)
            rows = slice(max(first, begin) - begin, min(last, end) - begin)
            try:
                file = _open(self.path(part))
                pieces.append((file.get_slice("ids")[rows], file.get_slice("log_probs")[rows]))
            except (SafetensorError, OSError) as error:
                raise IntegrityError(
                    f"{self.path(part)}: can't be read ({first_line(error)}): delete it and start again"
                ) from error
        return torch.cat([ids for ids, _ in pieces]), torch.cat([values for _, values in pieces])


def tensors_of(ids: Tensor, log_probs: Tensor, vocab_size: int) -> Mapping[str, Tensor]:
    """A part as it is kept: ids (n, K), int16 where the vocabulary allows it, else int32, and float16 (n, K + 1)."""
    narrow = torch.int16 if vocab_size <= 2**15 else torch.int32
    return {"ids": ids.to(narrow), "log_probs": log_probs.half()}


@lru_cache(maxsize=OPEN_PARTS)
def _open(path: Path) -> Any:
    return safe_open(path, framework="pt")
