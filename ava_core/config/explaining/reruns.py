"""Which steps run again when a setting changes: those whose key holds it (`ava_core.runtime.identity`)."""

from __future__ import annotations

from ava_core.config.finetuning import LEFT_OUT
from ava_core.config.schema import FINE_TUNINGS, AvaConfig
from ava_core.config.section import Section
from ava_core.steps.table import STEPS

IN_EVERY_KEY = ("threads",)
"""Keys that enter each step's key by themselves, whatever sections it reads."""
LAYERS = ("preset", "hardware")
"""Keys that only name files of values."""
ELSEWHERE = {
    "align.stages": "the steps after those stages, whose model is another",
    "kubernetes.train_job.nodes": "with train.launcher = trainjob, the steps that train: it is the number of ranks",
    "kubernetes.steps.every.cpu_limit": "with threads = 0, the steps whose pods then have another number of CPUs",
    "kubernetes.train_job.cpu": "with train.launcher = trainjob and threads = 0, the steps that train",
}
"""Settings of a section that no step reads, which decide what others get: an input, ranks, threads."""


def steps_reading(key: str) -> tuple[list[str], list[str]]:
    """The steps whose key holds a setting, and those whose section takes it over from `train` unless it sets it.

    Args:
        key: dotted, without the marks of lists.
    """
    top, _, rest = key.partition(".")
    field = rest.partition(".")[0]
    if key in IN_EVERY_KEY:
        return list(STEPS), []
    if watches(top, field):
        return [], []
    direct = [name for name, spec in STEPS.items() if top in spec.sections and not names_input(name, key)]
    heirs = [
        spec.name
        for spec in STEPS.values()
        if top == "train" and (kind := FINE_TUNINGS.get(spec.training)) and field not in {*LEFT_OUT, *kind.refused}
    ]
    return direct, heirs if rest else []


def watches(top: str, field: str) -> bool:
    """Whether a field of a top-level section only watches the work."""
    sections = {info.alias or name: info.annotation for name, info in AvaConfig.model_fields.items()}
    section = sections.get(top)
    return isinstance(section, type) and issubclass(section, Section) and field in section.watching


def names_input(step: str, key: str) -> bool:
    """Whether the key names an input of the step, which counts by its contents."""
    return any(port.setting == key for port in STEPS[step].named_inputs)


def rerun_words(key: str) -> str:
    """What a change of the setting makes run again, as a phrase."""
    if key in LAYERS:
        return "the steps that read a value that it changes"
    if key in ELSEWHERE:
        return ELSEWHERE[key]
    if key in IN_EVERY_KEY:
        return "every step"
    direct, heirs = steps_reading(key)
    named = [name for name in STEPS if names_input(name, key)]
    parts = [", ".join(direct)] if direct else []
    if named:
        parts.append(f"{', '.join(named)} if what it names has other contents")
    if heirs:
        parts.append(f"{', '.join(heirs)} where they don't set it")
    return "; ".join(parts) or "nothing"
