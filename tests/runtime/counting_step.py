"""`ava count`: a step for the tests of the step contract, run by the real command line, in a process of its own or not.

It writes COUNT_BLOCKS blocks of bytes that depend on the seed, each durable in the state folder, and joins them. More
of the environment: COUNT_BYTES (size of a block), COUNT_HOLD (a file that the third block waits for), COUNT_TRACE (a
file that gets a line per block that was really computed), COUNT_FAIL (what goes wrong, see `_fail`).
"""

import hashlib
import logging
import os
import time
from pathlib import Path

import typer

from ava_core.steps.spec import Choice, Input, Kind, StepSpec
from ava_core.steps.table import STEPS

NUMBERS = Kind(name="numbers")
SPEC = StepSpec(
    name="count",
    summary="Write blocks of bytes.",
    output="numbers",
    kind=NUMBERS,
    sections=("seed",),
    function="ava_core.errors:one_line",  # stands for the code of the step, which would have to lie in the package
    inputs=(Input(name="numbers", kind=NUMBERS, required=False, repeated=True),),
    choices=(Choice(name="letter", help="Goes into the bytes.", values=("a", "b")),),
    metrics=("blocks",),
    timings=("wall_seconds",),
)


def compute(run) -> None:
    logging.getLogger("ava_core.count").info("password=hunter2 at postgres://me:hunter2@db/x")
    blocks = int(os.environ.get("COUNT_BLOCKS", "4"))
    for index in range(blocks):
        path = run.state / f"{index}.bin"
        if not path.exists():
            while index == 2 and "COUNT_HOLD" in os.environ and not Path(os.environ["COUNT_HOLD"]).exists():
                time.sleep(0.02)
            word = hashlib.sha256(f"{run.config.seed} {run.choices['letter']} {index}".encode()).digest()
            partial = run.state / "partial"
            partial.write_bytes(word * (int(os.environ.get("COUNT_BYTES", "64")) // len(word)))
            partial.rename(path)
            if trace := os.environ.get("COUNT_TRACE"):
                with Path(trace).open("a") as file:
                    file.write(f"{index}\n")
    (run.output / "part").mkdir()
    with (run.output / "part" / "numbers.bin").open("wb") as file:
        for index in range(blocks):
            file.write((run.state / f"{index}.bin").read_bytes())
    run.metrics["blocks"] = blocks
    run.progress.task("count", blocks)
    _fail(os.environ.get("COUNT_FAIL"), run)


def _fail(how: str | None, run) -> None:
    if how == "defect":
        raise KeyError("no such\nthing")
    if how == "nan":
        run.metrics["loss"] = float("nan")
    if how == "missing":
        del run.metrics["blocks"]
    if how == "library":  # as safetensors reports a full disk
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def build_app() -> typer.Typer:
    """The command line of `ava`, with this step alone."""
    from ava_core.cli.step_command import step_command

    STEPS[SPEC.name] = SPEC
    app = typer.Typer(rich_markup_mode=None)
    app.command()(step_command(SPEC.name, compute))
    return app


if __name__ == "__main__":
    from ava_core.cli import main

    main.app = build_app()
    main.main()
