"""Where in a model a number stops being finite. Shapes: see `shapes`.

A loss that is nan says nothing of its cause. Watching every layer of every pass would cost a read of all activations
(and on an accelerator a wait for each), so nothing is watched until a loss isn't finite; then the pass is repeated
once with a hook on every module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ava_core.errors import AvaError


class NonFiniteError(AvaError, FloatingPointError):
    """A loss that is nan or infinite; the one line says where that begins."""

    @classmethod
    def of(cls, model: PreTrainedModel, loss: Tensor | float, **inputs: Any) -> NonFiniteError:
        """The error for `loss`, which `model(**inputs)` gave. Repeats the pass, in the caller's autocast."""
        if _is_sharded(model):
            # The other processes wouldn't take part in gathering the weights again: the pass would wait for ever.
            finding = "the weights are sharded over processes: repeat the step in one process to learn the layer"
        else:
            finding = first_non_finite(model, **inputs) or "all layers are finite when the pass is repeated"
        value = loss.item() if isinstance(loss, Tensor) else loss
        return cls(f"loss is {value}: {finding}")


class _FoundError(Exception):
    """Ends the repeated pass; the message is the finding."""


def first_non_finite(model: PreTrainedModel, **inputs: Any) -> str | None:
    """Name the first thing in `model(**inputs)` that holds nan or infinity, or return None.

    Parameters and buffers come first, for all that follows from them is a consequence; then the inputs; then the
    outputs of modules in the order of computation, the innermost first: `layers.3.moe.experts: output is inf though
    its input is finite`. The name of a whole layer means the sum with its residual.

    Runs one forward pass without gradients in the model's present mode (noise is drawn anew, the process's random
    state stays as it was). A cache among the inputs is left out, for the pass would extend it.
    """
    found = _weight_fault(model) or _input_fault(inputs)
    if found is not None:
        return found
    prefix = f"{model.base_model_prefix}."
    modules = [(name.removeprefix(prefix), module) for name, module in model.named_modules()]
    hooks = [module.register_forward_hook(_watch(name or "the model")) for name, module in modules]
    raising = getattr(model, "raise_non_finite", None)
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        model.raise_non_finite = False  # type: ignore[assignment]  # or it would diagnose its own diagnosis
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            model(**{**inputs, "past_key_values": None, "use_cache": False})
    except _FoundError as error:
        return str(error)
    finally:
        model.raise_non_finite = raising  # type: ignore[assignment]
        for hook in hooks:
            hook.remove()
    return None


def _watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        for part, tensor in _tensors(output, "output"):
            if (kind := _non_finite(tensor)) is not None:
                raise _FoundError(f"{name}: {part} is {kind} though its input is finite")

    return hook


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors inside tuples, mappings and dataclasses, each with the name of its field."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, str(key))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item, name)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name), field.name)


def _non_finite(tensor: Tensor) -> str | None:
    """ "nan" or "inf" if the tensor holds one; nan has precedence, for infinities breed it."""
    if not tensor.is_floating_point() or bool(tensor.isfinite().all()):
        return None
    return "nan" if bool(tensor.isnan().any()) else "inf"


def _weight_fault(model: nn.Module) -> str | None:
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    weights = chain(model.named_parameters(), model.named_buffers())
    faults = [(name, kind) for name, weight in weights if (kind := _non_finite(weight.detach())) is not None]
    if not faults:
        return None
    name, kind = faults[0]
    others = f", and {len(faults) - 1} more weights hold such values" if len(faults) > 1 else ""
    return f"{name.removeprefix(prefix)}: the weight itself holds {kind}{others}"


def _input_fault(inputs: Mapping[str, Any]) -> str | None:
    for name, value in inputs.items():
        if isinstance(value, Tensor) and (kind := _non_finite(value)) is not None:
            return f"{name}: the input itself holds {kind}"
    return None


def _is_sharded(model: nn.Module) -> bool:
    """Whether a pass over the model is a collective operation: ZeRO-3 (DeepSpeed marks its weights) or FSDP2."""
    return any(hasattr(weight, "ds_id") or isinstance(weight, DTensor) for weight in model.parameters())
