"""What a model does at the end of its context. Shapes: see `shapes`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import logging

log = logging.get_logger(__name__)


class BoundedGeneration:
    """`generate`, and with it Transformers' pipelines, within `config.max_position_embeddings`.

    RoPE has no last position, so generation wouldn't fail beyond the context: it would go on with text that means
    nothing. Comes before `GenerationMixin` among a class's bases.
    """

    def _prepare_generated_length(self: Any, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        """Transformers' hook that sets `max_length`; here it is also bounded by the room that the prompt leaves.

        Raises:
            ValueError: the prompt alone is longer than the context.
        """
        prepared = super()._prepare_generated_length(generation_config, *args, **kwargs)  # type: ignore[misc]
        context, prompt = self.config.max_position_embeddings, kwargs["inputs_tensor"].shape[1]
        if prompt > context:
            raise ValueError(
                f"prompt of {prompt} tokens: the model's context (max_position_embeddings) is {context}: shorten it,"
                f" as tokenizer(text, truncation=True, max_length={context}) does"
            )
        # After a prompt that fills the context one token can still be predicted.
        room = max(context - prompt, 1)
        longest = kwargs["input_ids_length"] + room
        if prepared.max_length > longest:
            log.warning_once(f"generation ends with the model's context (max_position_embeddings = {context})")
            prepared.max_length = longest
        return prepared


def warn_beyond(context: int, position_ids: Tensor) -> None:
    """Warn once of positions beyond the context; not where reading them synchronises with a GPU or breaks a graph."""
    if position_ids.device.type != "cpu" or torch.compiler.is_compiling() or not position_ids.numel():
        return
    if int(position_ids.max()) >= context:
        log.warning_once(
            f"positions beyond the model's context (max_position_embeddings = {context}): it wasn't trained for them,"
            " and what it predicts there means little"
        )
