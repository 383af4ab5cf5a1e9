"""dvc.yaml: a stage for each step of the graph, made from the step table.

Usage: python -m pipelines.stages [--params params.yaml] --output dvc.yaml, or --check dvc.yaml

Its stages between train and quantize are those that `AvaConfig.stages` names; `dvc repro` checks that first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from ava_core.config import resolve
from ava_core.config.align import StageName
from ava_core.errors import ConfigError
from ava_core.steps.indexing import INDEXING, between
from ava_core.steps.spec import Kind, StepSpec, flag
from ava_core.steps.table import STEPS
from pipelines import command_line

HEADER = """\
# Written by `python -m pipelines.stages --output dvc.yaml` from the step table (ava_core/steps/table.py) and the graph
# (pipelines/ava_pipeline.py): change those. `dvc repro` runs what changed. The stage `keys` writes what decides each
# step's result: the digest in outputs/keys/STEP.json changes with the code that can change it, and only then.
"""
RAW, CORPUS = "data/raw", "data/raw/shakespeare"
"""The folder of the corpora, and the one in it that DVC tracks."""
ALWAYS_READ = ("preset", "hardware", "threads")
PLOTS = [
    {
        "loss": {
            "x": {"outputs/model/history.csv": "step", "outputs/model/validation.csv": "step"},
            "y": {"outputs/model/history.csv": "train_loss", "outputs/model/validation.csv": "validation_loss"},
            "title": "Loss in nats per token",
            "x_label": "step",
            "y_label": "nats per token",
        }
    },
    "outputs/model/loss.png",
]


def describe(steps: Sequence[str]) -> dict[str, Any]:
    """The contents of dvc.yaml.

    An input is the latest output of its kind, as in the graph. Of a repeated input it is the folder of all of them: DVC
    can't list a matrix among another stage's dependencies.

    Args:
        steps: names of the steps, in the order in which they run.
    """
    latest: dict[Kind, str] = {}
    stages: dict[str, Any] = {"keys": _keys(steps)}
    for spec in (STEPS[name] for name in steps):
        stages[spec.name] = _stage(spec, latest)
        latest[spec.kind] = _output(spec)
    stages["figures"] = {
        "desc": "the key figures of all steps in one file, for `dvc metrics` and `dvc exp show`",
        "cmd": "python -m pipelines.figures outputs --output outputs/figures.json",
        "deps": [*(_output(STEPS[name]) for name in steps), "ava_core/steps/table.py", "pipelines/figures.py"],
        "metrics": ["outputs/figures.json"],
    }
    return {"stages": stages, "plots": PLOTS}


def _stage(spec: StepSpec, latest: dict[Kind, str]) -> dict[str, Any]:
    given = (*spec.pipeline_inputs, *(port for port in spec.inputs_where_made if port.kind in latest))
    folders = {port.name: latest[port.kind] if port.kind else RAW for port in given}
    output = _output(spec)
    words = ["ava", *spec.words, "--params", "params.yaml"]
    for name, folder in folders.items():
        words += [flag(name), folder]
    for choice in spec.choices:
        words += [flag(choice.name), f"${{item.{choice.name}}}"]
        output = f"{output}/${{item.{choice.name}}}"
    command = " ".join([*words, "--output", output])
    # A value that is no longer listed would stay in the folder of all, and enter the hash of what follows.
    prune = f"python -m pipelines.prune_schemes --params params.yaml {_output(spec)}"
    return {
        "desc": f"{spec.summary[0].lower()}{spec.summary[1:].rstrip('.')}",
        **({"matrix": dict(_matrix(spec))} if spec.choices else {}),
        # It looks or writes elsewhere, in the registry, of which DVC knows nothing.
        **({} if spec.cacheable else {"always_changed": True}),
        "cmd": [command, prune] if spec.choices else command,
        "deps": [*(CORPUS if folder == RAW else folder for folder in folders.values()), _key(spec.name)],
        "params": [*ALWAYS_READ, *spec.sections],
        "outs": [output],
    }


def _keys(steps: Sequence[str]) -> dict[str, Any]:
    return {
        "desc": "what decides each step's result beside its inputs: its code, and the values that it reads",
        # What train.init names may change under the same name; the stage takes a second, and what depends on it runs
        # only if a key has changed.
        "always_changed": True,
        "cmd": [
            "python -m pipelines.stages --params params.yaml --check dvc.yaml",
            f"ava keys --params params.yaml --data {RAW} --output outputs/keys",
        ],
        "deps": ["params.yaml", "configs", "ava_core"],
        "outs": [_key(name) for name in steps],
    }


def _matrix(spec: StepSpec) -> Iterator[tuple[str, str]]:
    for choice in spec.choices:
        yield choice.name, f"${{{choice.listed}}}"


def _key(step: str) -> str:
    return f"outputs/keys/{step}.json"


def _output(spec: StepSpec) -> str:
    return f"outputs/{spec.output}"


def render(stages: Sequence[str] = ()) -> str:
    """The text of dvc.yaml, with the stages between train and quantize that `AvaConfig.stages` names."""
    from pipelines.compile import compile_pipeline  # kfp takes seconds that a check can save
    from pipelines.graph import Graph

    graph = Graph(compile_pipeline(["int8"], stages=stages))
    steps = list(dict.fromkeys(step for name in graph.order if (step := graph.component(name).step)))
    # As the graph was made: a task that nobody waits for would come last.
    block = [spec.name for spec in between(stages)]
    steps = [step for step in steps if step not in block]
    after = steps.index("train") + 1
    values = yaml.safe_dump(
        describe([*steps[:after], *block, *steps[after:]]), sort_keys=False, width=118, allow_unicode=True
    )
    return f"{HEADER}{values}"


def check(path: Path, wanted: Sequence[str]) -> None:
    """Refuse a dvc.yaml with other stages between train and quantize than the configuration asks for.

    Raises:
        ConfigError: it has others.
    """
    stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
    present = [name for name in stages if name in (*get_args(StageName), INDEXING.name)]
    if present != list(wanted):
        raise ConfigError(
            f"{path}: has the stages {', '.join(present) or 'none'} between train and quantize, align.stages and"
            f" retrieval.pipeline ask for {', '.join(wanted) or 'none'}: run `python -m pipelines.stages --output"
            f" {path}`"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, and write or check."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.stages", description="Write dvc.yaml, or check it.")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters (default: %(default)s)")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--output", type=Path, help="file to write")
    wanted.add_argument("--check", type=Path, help="file whose stages must be those that the parameters ask for")
    flags = parser.parse_args(arguments)
    stages = resolve(params=flags.params).config.stages
    if flags.check:
        check(flags.check, stages)
    else:
        flags.output.write_text(render(stages), encoding="utf-8")


if __name__ == "__main__":
    command_line.run("pipelines.stages", main)
