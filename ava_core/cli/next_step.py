"""`ava` without arguments: what there is in this folder, and the command that comes next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.steps.indexing import INDEXING, between
from ava_core.steps.kinds import MODEL
from ava_core.steps.spec import Kind, StepSpec, flag
from ava_core.steps.table import STEPS

if TYPE_CHECKING:
    from ava_core.config import AvaConfig

PARAMS = "params.yaml"
OUTPUTS = "outputs"
RAW, CORPUS = "data/raw", "data/raw/shakespeare"
"""Where `make data` puts corpora, and the embedded one."""
RUNS = ".ava/runs"
"""Where `make pipeline-local` keeps its runs."""
MANIFEST = "manifest.json"
OPTIONAL = frozenset(spec.name for spec in between(["sft", "reward", "dpo", "grpo", INDEXING.name]))
"""Steps that the pipeline has only where the configuration asks for them."""


def next_lines(folder: Path) -> Iterator[str]:
    """Where this folder stands, and what to do next.

    Args:
        folder: the current one; paths in commands are relative to it.
    """
    from ava_core.config import resolve

    if not (folder / PARAMS).is_file():
        yield f"There is no {PARAMS} here. Go to the checkout of Ava, or begin with the settings of a preset:"
        yield f"    ava config show --preset cpu/tiny --yaml > {PARAMS}"
    else:
        config = resolve(params=folder / PARAMS).config
        yield from _of_pipeline(folder, config)
    yield "All commands: ava --help. What may be wrong here: ava doctor."


def _of_pipeline(folder: Path, config: AvaConfig) -> Iterator[str]:
    present, command = _progress(folder, config)
    whole = (folder / "Makefile").is_file()
    if command is None or (not present and (run := _finished_run(folder)) is not None):
        model = _model(config) if command is None else f"{run}/train/model"
        where = OUTPUTS if command is None else run
        yield f"The pipeline has run: its outputs are in {where}. Next:"
        yield f'    ava generate --model {model} --prompt "To be, or" --stream'
        yield f"    ava serve --model {model}"
        yield "    ava show"
        return
    yield f"Here are {', '.join(present)}. Next:" if present else "Nothing has been computed here yet. Next:"
    if not present and _lacks_corpus(folder, config):
        yield "    make data" if whole else f"    python -m ava_core.data.fetch --output {RAW}"
    yield f"    {command}"
    if whole:
        yield "All steps, and only what is to be done: make pipeline-local, or make repro with DVC."


def _progress(folder: Path, config: AvaConfig) -> tuple[list[str], str | None]:
    """The finished outputs, and the command of the first step that has none; None where all have."""
    found: list[str] = []
    latest: dict[Kind, list[str]] = {}
    for spec in _steps(config):
        for output, choices in _outputs(spec, config):
            if not (folder / output / MANIFEST).is_file():
                return found, _command(spec, output, choices, latest)
            found.append(output)
        latest[spec.kind] = [output for output, _ in _outputs(spec, config)]
    return found, None


def _steps(config: AvaConfig) -> list[StepSpec]:
    """Those of the pipeline, in the order in which they run."""
    always = [spec for spec in STEPS.values() if spec.name not in OPTIONAL]
    after = [spec.name for spec in always].index("train") + 1
    return [*always[:after], *between(config.stages), *always[after:]]


def _outputs(spec: StepSpec, config: AvaConfig) -> list[tuple[str, dict[str, str]]]:
    """The folders that the step makes, each with the choice that it is made with."""
    outputs: list[tuple[str, dict[str, str]]] = [(f"{OUTPUTS}/{spec.output}", {})]
    for choice in spec.choices:
        section, _, key = choice.listed.partition(".")
        values = getattr(getattr(config, section), key)
        outputs = [
            (f"{output}/{value}", {**given, choice.name: value}) for output, given in outputs for value in values
        ]
    return outputs


def _command(spec: StepSpec, output: str, choices: dict[str, str], latest: dict[Kind, list[str]]) -> str:
    words = ["ava", *spec.words, "--params", PARAMS]
    given = (*spec.pipeline_inputs, *(port for port in spec.inputs_where_made if port.kind in latest))
    for port in given:
        for path in latest.get(port.kind, []) if port.kind else [RAW]:
            words += [flag(port.name), path]
    for name, value in choices.items():
        words += [flag(name), value]
    return " ".join([*words, "--output", output])


def _model(config: AvaConfig) -> str:
    """The output folder of the last training."""
    return [f"{OUTPUTS}/{spec.output}" for spec in _steps(config) if spec.kind == MODEL][-1]


def _lacks_corpus(folder: Path, config: AvaConfig) -> bool:
    return any(source.corpus for source in config.data.sources) and not (folder / CORPUS).is_dir()


def _finished_run(folder: Path) -> str | None:
    """The newest run of the pipeline that has a model."""
    runs = sorted(path.parents[2] for path in folder.glob(f"{RUNS}/*-[0-9]*/train/model/{MANIFEST}"))
    return runs[-1].relative_to(folder).as_posix() if runs else None
