"""The mean of finished models: a soup (arXiv 2203.05482) of several, or a point on the arc between two (SLERP)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ava_core.config.model import OF_TRAINING
from ava_core.data.tokenizer_identity import gives_same_ids
from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.models.conversion.recipes import Shape, Tensors
from ava_core.origin import read_origin
from ava_core.progress import Progress
from ava_core.remaking.material import Material, write_model

log = logging.getLogger(__name__)
METHODS = ("soup", "slerp")
PARALLEL = 1e-6
"""Sine of the angle between two tensors below which the arc between them is a straight line."""


class Averaging:
    """What is to be averaged, looked at when it is made; nothing is read of the weights but their headers.

    Args:
        models: folders of finished models, verified.
        method: `soup`: the weighted mean; `slerp`: of two models, the point on the arc.
        weights: a share for each model, in [0, 1], which sum to 1; None: equal shares. Of an arc the second is how far
            along it the result lies.

    Raises:
        ConfigError: the models have other architectures, tokenizers or licences, or shares and method don't fit them.
        AvaError: a folder is no model.
    """

    def __init__(self, models: Sequence[Path], method: str, weights: Sequence[float] | None) -> None:
        shares = _checked_weights(len(models), method, weights)
        # By digest, so that the order in which models are named can't change a rounding.
        pairs = sorted(zip(map(Material.read, models), shares, strict=True), key=lambda pair: (pair[0].digest, pair[1]))
        self.method, self.weights = method, [share for _, share in pairs]
        self.materials = [material for material, _ in pairs]
        for first, other in pairwise(self.materials):
            _require_alike(first, other)
        dtypes = {dtype for material in self.materials for dtype in material.checkpoint.dtypes}
        self.dtype = "bfloat16" if dtypes == {"bfloat16"} else "float32"
        if not set.intersection(*(material.ancestors for material in self.materials)):
            log.warning(
                "average: nothing says that these models began from the same one: a mean of weights is a model only"
                " where they did, so measure it"
            )

    @property
    def choices(self) -> dict[str, str]:
        """What of the request determines the output beside the models' contents: their shares, by digest."""
        shares = zip(self.materials, self.weights, strict=True)
        return {"method": self.method, "shares": " ".join(f"{one.digest[:32]}:{weight!r}" for one, weight in shares)}

    def write(self, output: Path, progress: Progress) -> dict[str, float]:
        """Fill the empty folder `output`; figures of the model."""
        first = self.materials[0]
        shapes = first.checkpoint.shapes
        total = sum(math.prod(shape) for shape in shapes.values())
        with progress.task("average", total) as advance:
            done = 0

            def rows(name: str) -> Iterator[Tensor]:
                nonlocal done
                for part in self._tensor(name, shapes[name]):
                    yield part
                    done += part.numel()
                    advance(done)

            shares = " + ".join(
                f"{weight:g} {material.digest[:12]}"
                for weight, material in zip(self.weights, self.materials, strict=True)
            )
            return write_model(first, output, first.config, shapes, self.dtype, rows, [f"{self.method}: {shares}"])

    def _tensor(self, name: str, shape: Shape) -> Iterator[Tensor]:
        """The averaged tensor; of stacked experts one after the other, as each is a matrix of its own."""
        for row in range(shape[0]) if len(shape) == 3 else (None,):
            need = Tensors(name, shape, row)
            values = [material.checkpoint.read(need).double() for material in self.materials]
            mixed = (
                slerp(values[0], values[1], self.weights[1]) if self.method == "slerp" else soup(values, self.weights)
            )
            yield mixed if row is None else mixed[None]


def soup(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of tensors of one shape."""
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor, alpha=weight)
    return total


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The point at `share` of the arc from `first` to `second`, taken as vectors.

    With the angle w between them: (sin((1 - t) w) first + sin(t w) second) / sin w. A straight line where they are
    parallel, or one is 0.
    """
    lengths = first.norm() * second.norm()
    cosine = float((first * second).sum() / lengths) if lengths > 0 else 1.0
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < PARALLEL:
        return soup([first, second], [1 - share, share])
    parts = (math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle))
    return soup([first, second], parts)


def _checked_weights(count: int, method: str, weights: Sequence[float] | None) -> tuple[float, ...]:
    if method not in METHODS:
        raise ConfigError(f"--method {method}: must be one of {', '.join(METHODS)}")
    if count < 2:
        raise ConfigError(f"{count} model: a mean is of two or more: name another folder")
    if method == "slerp" and count != 2:
        raise ConfigError(f"--method slerp: is an arc between two models, not {count}: use soup, or average in pairs")
    if weights is None:
        return (1 / count,) * count
    shown = ",".join(f"{weight:g}" for weight in weights)
    if len(weights) != count:
        raise ConfigError(f"--weights {shown}: {len(weights)} shares for {count} models: give one for each")
    if not all(0 <= weight <= 1 for weight in weights) or abs(math.fsum(weights) - 1) > 1e-6:
        raise ConfigError(f"--weights {shown}: must be shares in [0, 1] that sum to 1, not to {math.fsum(weights):g}")
    return tuple(weights)


def _require_alike(first: Material, other: Material) -> None:
    """Refuse two models whose weights don't mean the same."""
    ours, theirs = _compared(first), _compared(other)
    for name, value in ours.items():
        if theirs[name] != value:
            raise ConfigError(
                f"{other.folder}: {name} = {theirs[name]}, and {first.folder} has {value}: only models of one"
                " architecture have a mean"
            )
    if first.checkpoint.shapes != other.checkpoint.shapes:
        strange = first.checkpoint.shapes.items() ^ other.checkpoint.shapes.items()
        raise IntegrityError(f"{other.folder}: {min(strange)[0]}: not the tensor that its architecture has")
    if not gives_same_ids(first.folder, other.folder):
        raise ConfigError(
            f"{other.folder}: its tokenizer is not that of {first.folder}: their embeddings are of other tokens, and"
            " have no mean"
        )
    licences = [origin.licence_id if (origin := read_origin(one.folder)) else "" for one in (first, other)]
    if licences[0] != licences[1]:
        names = " and ".join(name or "none" for name in licences)
        raise AvaError(
            f"{other.folder}: the licences of the models' origins are {names}: what is made of both is under both,"
            " which origin.json can't say"
        )


def _compared(material: Material) -> dict[str, Any]:
    fields = material.architecture.model_dump(exclude=set(OF_TRAINING))
    return {"vocab_size": material.config.vocab_size, **fields}
