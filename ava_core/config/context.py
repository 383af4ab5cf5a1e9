"""How far a model looks: scaled rotary positions (`model.rope_scaling`) and attention in a sliding window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from ava_core.config.section import Positive, PositiveNumber, Section

RopeType = Literal["none", "linear", "dynamic", "yarn"]
LayerType = Literal["full_attention", "sliding_attention"]
NONE, LINEAR, DYNAMIC, YARN = get_args(RopeType)
FULL, SLIDING = get_args(LayerType)
MAX_FACTOR = 1e6
DEFAULT = "default"
_KEYS = {
    DEFAULT: {"rope_type", "rope_theta"},
    LINEAR: {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"},
    DYNAMIC: {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"},
    YARN: {
        *("rope_type", "rope_theta", "factor", "original_max_position_embeddings"),
        *("beta_fast", "beta_slow", "attention_factor", "truncate"),
    },
}
_OF_YARN = ("beta_fast", "beta_slow", "attention_factor")


class RopeScalingConfig(Section):
    """Rotary positions of a model that reads more than it was trained with; the names are those of Transformers.

    A model is given a longer context by `train.init` with `max_position_embeddings` raised and one of these kinds; some
    steps on long sequences then let it get used to the changed angles.
    """

    type: RopeType = "none"
    """linear: positions divided by the factor (arXiv 2306.15595); dynamic: a larger base of the frequencies as a text
    grows past the original context (NTK); yarn: slow frequencies divided, fast ones kept, attention sharpened (arXiv
    2309.00071)."""
    factor: Annotated[float, Field(gt=1.0, le=MAX_FACTOR)] | None = None
    """How many times the original context; null: max_position_embeddings / original_max_position_embeddings."""
    original_max_position_embeddings: Positive | None = None
    """The context in tokens that the weights were trained with; dynamic and yarn need it."""
    beta_fast: PositiveNumber | None = None
    """Of yarn: frequencies that turn more often in the original context are kept; null: 32."""
    beta_slow: PositiveNumber | None = None
    """Of yarn: frequencies that turn less often in the original context are divided by the factor; null: 1."""
    attention_factor: PositiveNumber | None = None
    """Of yarn: queries and keys are multiplied by it; null: 0.1 ln(factor) + 1."""

    @model_validator(mode="after")
    def _fields_fit(self) -> RopeScalingConfig:
        if self.type == NONE:
            for name in (*_OF_YARN, "factor", "original_max_position_embeddings"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(f"{name} = {value}: has no effect with type = none: set the type, or leave it out")
        elif fault := scaling_fault({**self.model_dump(exclude={"type"}), "rope_type": self.type}):
            field, requirement = fault
            raise ValueError(f"{field} = {getattr(self, field)}: {requirement}")
        return self


def scaling_fault(parameters: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong with scaled positions: a field and what it must be.

    Args:
        parameters: with Transformers' names, `rope_type` among them; None is the same as a name that isn't there.
    """
    kind = parameters["rope_type"]
    given = {name for name, value in parameters.items() if value is not None}
    original = "original_max_position_embeddings"
    for name in _OF_YARN:
        if name in given and kind != YARN:
            return name, f"has no effect with type = {kind}: leave it out"
    if original not in given and kind != LINEAR:
        return original, f"must be given for {kind}: the context in tokens that the weights were trained with"
    if not given & {"factor", original}:
        return "factor", f"must be given for {kind}, or original_max_position_embeddings"
    for name in given & {"factor", original, *_OF_YARN}:
        least = 1 if name == "factor" else 0
        if not (isinstance(parameters[name], int | float) and least < parameters[name] < float("inf")):
            return name, f"must be > {least}"
    fast, slow = parameters.get("beta_fast") or 32, parameters.get("beta_slow") or 1
    if fast <= slow:
        name = "beta_fast" if "beta_fast" in given else "beta_slow"
        return name, f"beta_fast = {fast:g} must be > beta_slow = {slow:g}"
    return None


def checked_parameters(given: Mapping[str, Any], theta: float, context: int, head_dim: int) -> dict[str, Any]:
    """`rope_parameters` as a configuration keeps them: complete, and nothing in them that has no effect.

    Args:
        given: with the names of Transformers; `type` stands for `rope_type`, and "none" for "default".
        theta: base of the frequencies, where they don't say it.
        context: `max_position_embeddings`, by which a missing factor is found.
        head_dim: A.

    Raises:
        ValueError: a kind or a name that isn't known, or a value that means nothing.
    """
    found = {name: value for name, value in given.items() if value is not None and name != "type"}
    kind = found.setdefault("rope_type", given.get("type") or DEFAULT)
    if kind == "none":
        kind = found["rope_type"] = DEFAULT
    if kind not in _KEYS:
        raise ValueError(f"rope_parameters.rope_type = {kind!r}: must be one of {', '.join(_KEYS)}")
    if found.get("partial_rotary_factor") == 1:
        del found["partial_rotary_factor"]
    if strange := sorted(found.keys() - _KEYS[kind]):
        raise ValueError(f"rope_parameters.{strange[0]} = {found[strange[0]]!r}: {kind} has no such parameter")
    found.setdefault("rope_theta", theta)
    if kind == DEFAULT:
        return found
    if "factor" not in found and "original_max_position_embeddings" in found:
        found["factor"] = context / found["original_max_position_embeddings"]
    if fault := scaling_fault(found):
        field, requirement = fault
        raise ValueError(f"rope_parameters.{field} = {found.get(field)!r}: {requirement}")
    if kind == DYNAMIC and head_dim <= 2:
        raise ValueError(f"head_dim = {head_dim}: must be > 2 for rope_parameters.rope_type = 'dynamic'")
    return found


def scaling_of(parameters: Any) -> dict[str, Any]:
    """The section `model.rope_scaling` that `rope_parameters` of a model's config.json stand for."""
    if not isinstance(parameters, Mapping) or parameters.get("rope_type", DEFAULT) == DEFAULT:
        return {}
    found = {name: parameters[name] for name in RopeScalingConfig.model_fields if parameters.get(name) is not None}
    return {**found, "type": parameters["rope_type"]}


def window_fault(window: int | None, types: Sequence[str] | None, num_layers: int) -> tuple[str, str] | None:
    """What is wrong with a window and the layers that have it: a field and what it must be."""
    if window is None:
        return None if types is None else ("layer_types", "has no effect without sliding_window: give both or neither")
    if window < 2:
        return "sliding_window", "must be > 1, or null: of one token it sees nothing else"
    if types is None:
        return None
    if not 0 < len(types) <= num_layers:
        return "layer_types", f"must have 1 to num_layers = {num_layers} entries, which repeat over the layers"
    if not set(types) <= {FULL, SLIDING}:
        return "layer_types", f"must be {FULL} or {SLIDING} each"
    if SLIDING not in types:
        return "layer_types", f"must name {SLIDING} at least once, or sliding_window has no effect"
    return None


def repeated(types: Sequence[str] | None, num_layers: int) -> list[str]:
    """The kind of each layer's attention: `types` over and over; None: every layer slides."""
    pattern = list(types or [SLIDING])
    return [pattern[layer % len(pattern)] for layer in range(num_layers)]
