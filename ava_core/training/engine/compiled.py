"""The decoder's layers under `torch.compile`, for the passes that are trained (`train.compile`).

One graph per layer: the head computes its loss in chunks and reads sizes, so the whole model is none. Layers of the
same kind share a graph; there is one with a mask and one without, and one for each length of the curriculum. Everything
else, evaluation above all, whose batches have other shapes, runs as it does without.

torch.compile: https://docs.pytorch.org/docs/stable/torch.compiler.html
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch._dynamo import config as dynamo
from torch._dynamo.exc import TorchDynamoException

from ava_core.config.train import TrainConfig
from ava_core.errors import AvaError, first_line
from ava_core.models.modeling import DecoderLayer
from ava_core.models.routing import RouteTape
from ava_core.training.compiler import CACHE, private_cache, require_compiler
from ava_core.training.objective import TrainedModel

log = logging.getLogger(__name__)
VARIANTS = 4
"""Graphs of one layer and length: with a mask or without, choosing its routes or replaying given ones."""


class CompiledLayers:
    """Compiles the layers of a model when they first train.

    Args:
        model: its decoder's layers are.
        config: the section `train`.

    Raises:
        ConfigError: this machine can't compile.
    """

    def __init__(self, model: TrainedModel, config: TrainConfig) -> None:
        require_compiler()
        os.environ[CACHE] = str(private_cache())
        self._layers = [module for module in model.modules() if isinstance(module, DecoderLayer)]
        # Deterministic: on a GPU no kernel is chosen by a clock.
        self._forward = _without_record(
            torch.compile(DecoderLayer.forward, fullgraph=True, dynamic=False, options={"deterministic": True})
        )
        # Past it, PyTorch would give up; frozen layers, for one, can each be of a kind of its own.
        lengths = 1 + len(config.curriculum.sequence_lengths)
        self._graphs = max(dynamo.recompile_limit, VARIANTS * lengths * len(self._layers))
        self._told = False

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Within it, the layers run compiled.

        Raises:
            AvaError: a graph can't be compiled.
        """
        if not self._told:
            self._told = True
            log.info("train: compiling the layers: the first step takes longer by that")
        for layer in self._layers:
            vars(layer)["forward"] = MethodType(self._forward, layer)
        try:
            with dynamo.patch(recompile_limit=self._graphs):
                yield
        except TorchDynamoException as error:
            log.debug("torch.compile", exc_info=True)
            raise AvaError(f"train.compile = true: {first_line(error)}: use false") from error
        finally:
            for layer in self._layers:
                del vars(layer)["forward"]


def _without_record(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` without an empty tape. When gradient checkpointing computes a layer again, that would hold the routes,
    and the graph would be another one than the first; the same graph takes the same routes by itself."""

    def wrapped(*arguments: Any) -> Any:
        return forward(*(None if isinstance(each, RouteTape) and each.routes is None else each for each in arguments))

    return wrapped
