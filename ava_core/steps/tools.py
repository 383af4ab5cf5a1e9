"""Commands beside the pipeline whose output a step takes as that of a step, and who gives which kind of output."""

from __future__ import annotations

from ava_core.steps.kinds import MODEL, MODEL_IN, SHARDS_IN
from ava_core.steps.spec import Input, Kind, StepSpec
from ava_core.steps.table import STEPS

TOOLS: dict[str, StepSpec] = {
    spec.name: spec
    for spec in (
        StepSpec(
            name="import",
            summary="Make a model of another maker's a model folder.",
            output="model",
            kind=MODEL,
            sections=(),
            function="ava_core.importing.importer:Import",
            inputs=(Input(name="source"),),
            metrics=("parameters", "active_parameters"),
            timings=("wall_seconds",),
            headlines=("parameters", "active_parameters"),
        ),
        StepSpec(
            name="prune",
            summary="Remove experts from every layer of a model, by load or effect, and repair what is left.",
            output="model",
            kind=MODEL,
            sections=(),
            function="ava_core.remaking.pruning:Pruning",
            inputs=(MODEL_IN, SHARDS_IN),
            metrics=(
                "parameters",
                "active_parameters",
                "validation_bits_per_byte_whole",
                "validation_bits_per_byte_pruned",
                "validation_bits_per_byte",
            ),
            timings=("wall_seconds",),
            headlines=("validation_bits_per_byte", "parameters"),
        ),
        StepSpec(
            name="average",
            summary="Make the mean of finished models: a soup of several, or a point on the arc between two.",
            output="model",
            kind=MODEL,
            sections=(),
            function="ava_core.remaking.averaging:Averaging",
            inputs=(Input(name="models", kind=MODEL, repeated=True),),
            metrics=("parameters", "active_parameters"),
            timings=("wall_seconds",),
            headlines=("parameters", "active_parameters"),
        ),
        StepSpec(
            name="merge",
            summary="Add an adapter's updates to the weights of its base.",
            output="model",
            kind=MODEL,
            sections=(),
            function="ava_core.adapters.merging:Merge",
            inputs=(Input(name="init", kind=MODEL), Input(name="adapter")),
            metrics=("parameters", "active_parameters"),
            timings=("wall_seconds",),
            headlines=("parameters", "active_parameters"),
        ),
    )
}
"""`ava_core.runtime.tool` runs them."""


def makers(kind: Kind | None) -> tuple[str, ...]:
    """Names of the steps and tools that give a kind of output; none give a raw folder, which has no kind."""
    return tuple(name for name, spec in {**STEPS, **TOOLS}.items() if kind is not None and spec.kind == kind)


def command_of(name: str) -> str:
    """How a step or tool is run: `ava train`. A step that this version doesn't know has its name for it."""
    spec = {**STEPS, **TOOLS}.get(name)
    return " ".join(["ava", *(spec.words if spec else (name,))])


def origin(kind: Kind) -> str:
    """Where a folder of a kind comes from, for messages: `output folder of `ava train` or `ava import``."""
    return f"output folder of {' or '.join(f'`{command_of(name)}`' for name in makers(kind))}"
