"""`ava compare`: evaluations side by side, with intervals of their differences."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ava_core.cli.chosen_model import CACHE
from ava_core.cli.recorded_comparison import record_comparison
from ava_core.cli.show import print_table
from ava_core.cli.step_flags import DEFAULT_WORK
from ava_core.config.register import REGISTERED

if TYPE_CHECKING:
    from ava_core.config.schema import AvaConfig
    from ava_core.evaluation.comparison.side import Side
    from ava_core.runtime.request import Request

PAGE, JSON = "comparison.html", "comparison.json"


def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C]...",
            help="What is compared, the base first: output folders of `ava evaluate`, or of `ava train` with --shards,"
            " or models:/NAME@ALIAS, models:/NAME/VERSION.",
        ),
    ],
    shards: Annotated[
        Path | None, typer.Option(help="Shards on whose test split models are evaluated first.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help=f"Folder for {PAGE} and {JSON}; replaced if it exists.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    fail_if_worse: Annotated[
        bool,
        typer.Option(
            "--fail-if-worse", help="Exit with 1 if one is worse than the first in bits per byte, with confidence."
        ),
    ] = False,
    significance: Annotated[float, typer.Option(help="1 less the confidence of the intervals; in (0, 1).")] = 0.05,
    resamples: Annotated[int, typer.Option(min=100, help="How often the text's units are drawn.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the draws.")] = 1337,
    params: Annotated[
        Path | None, typer.Option(help="With --shards: parameters of the evaluation, such as params.yaml.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="With --shards: key.path=value over the parameters.")
    ] = None,
    work: Annotated[
        Path, typer.Option(help="Work folder, where evaluations that were made before are found.", envvar="AVA_WORK")
    ] = DEFAULT_WORK,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Compare models on the same text: figures with paired bootstrap intervals, settings, routing, samples."""
    # Before anything imports tqdm, as in the steps.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from ava_core.config import resolve
    from ava_core.errors import AvaError
    from ava_core.files import whole_folder, write_json
    from ava_core.runtime import logs

    logs.configure()
    _require_comparable(sides, shards, significance)
    if output is not None:
        _require_ours(output)
    config = resolve(params=params, params_text=None, overrides=set_ or ()).config

    # Only now, because PyTorch takes seconds to import: a wrong flag is refused at once.
    from ava_core.evaluation.comparison.compare import Settings, worse_sides
    from ava_core.evaluation.comparison.compare import compare as make

    settings = Settings(significance=significance, resamples=resamples, seed=seed)
    with _opened(sides, shards, config, work, quiet) as (read, agreement):
        comparison = make(read, settings, agreement)
        record_comparison(read, config.registry.experiment)
    if output is not None:
        from ava_core.evaluation.comparison.page import render

        with whole_folder(output) as folder:
            write_json(folder / JSON, comparison)
            (folder / PAGE).write_text(render(comparison))
    if as_json:
        print(json.dumps(comparison, indent=2, sort_keys=True))
    else:
        _print(comparison, output)
    if fail_if_worse and (worse := worse_sides(comparison)):
        raise AvaError("; ".join(worse))


def _require_comparable(sides: list[str], shards: Path | None, significance: float) -> None:
    from ava_core.errors import ConfigError
    from ava_core.registry.download import parse_address

    if len(sides) < 2:
        raise ConfigError(f"{sides[0]}: one alone can't be compared: give two or more")
    seen: dict[Path | str, str] = {}
    for side in sides:
        key = side if side.startswith(REGISTERED) else Path(side).resolve()
        if key in seen:
            raise ConfigError(f"{side}: is given twice{'' if seen[key] == side else f', also as {seen[key]}'}")
        seen[key] = side
        if side.startswith(REGISTERED):
            parse_address(side)
    if not 0 < significance < 1:
        raise ConfigError(f"--significance {significance:g}: must be > 0 and < 1")
    if shards is not None and not any(_is_model(side) for side in sides):
        raise ConfigError(f"--shards {shards}: none of those given is a model: leave it out, or give models' folders")


def _require_ours(output: Path) -> None:
    """Only what an earlier comparison wrote is replaced."""
    from ava_core.errors import ConfigError

    if output.exists() and (not output.is_dir() or {path.name for path in output.iterdir()} - {PAGE, JSON}):
        raise ConfigError(f"--output {output}: holds something else than a comparison: name another folder")


def _is_model(side: str) -> bool:
    """Whether it is something that can be evaluated, and no evaluation."""
    return side.startswith(REGISTERED) or (Path(side) / "config.json").is_file()


@contextmanager
def _opened(
    sides: list[str], shards: Path | None, config: AvaConfig, work: Path, quiet: bool
) -> Iterator[tuple[list[Side], list[Any]]]:
    """The sides, and how often each chooses the experts of the first, while temporary folders are there."""
    from ava_core.errors import ConfigError
    from ava_core.evaluation.comparison.side import read_side

    with tempfile.TemporaryDirectory(prefix="ava-compare-") as scratch:
        read: list[Side] = []
        models: list[Path | None] = []
        for number, name in enumerate(sides):
            model: Path | None = None
            folder, parameters = Path(name), dict[str, str]()
            if name.startswith(REGISTERED):
                model, folder, parameters = _from_registry(name, Path(scratch), evaluated=shards is None)
            elif _is_model(name):
                model = folder
            if model is not None and shards is not None:
                folder = Path(scratch) / f"evaluation{number}"
                _evaluate(model, shards, folder, config, work, quiet)
            elif model is not None and folder == model:
                raise ConfigError(f"{name}: is a model: give --shards to evaluate it, or its evaluation's folder")
            models.append(model)
            read.append(read_side(name, folder, parameters))
        yield read, _agreement(models, shards)


def _from_registry(uri: str, scratch: Path, *, evaluated: bool) -> tuple[Path | None, Path, dict[str, str]]:
    """A version's evaluation, or its model if that is to be evaluated anew, and its run's parameters."""
    from ava_core.registry import download_model
    from ava_core.registry.evaluations import fetch_evaluation, read_parameters
    from ava_core.tracking import tracking_uri

    address = tracking_uri()
    parameters = read_parameters(uri, address)
    if evaluated:
        return None, fetch_evaluation(uri, address, scratch), parameters
    folder = download_model(uri, address, CACHE).folder
    return folder, folder, parameters


def _evaluate(model: Path, shards: Path, output: Path, config: AvaConfig, work: Path, quiet: bool) -> None:
    """Run the evaluate step, or take what it gave before."""
    from ava_core.cli.evaluate import compute
    from ava_core.runtime.step import run_step

    run_step(_request(model, shards, output, config, work, quiet), compute)


def _request(model: Path, shards: Path, output: Path, config: AvaConfig, work: Path, quiet: bool) -> Request:
    from ava_core.cli.evaluate import files_read
    from ava_core.progress import Progress
    from ava_core.runtime.request import Request
    from ava_core.steps.table import STEPS

    return Request(
        spec=STEPS["evaluate"],
        config=config,
        inputs={"model": [model.absolute()], "shards": [shards.absolute()], "quantized": []},
        choices={},
        output=output,
        work=work.absolute(),
        progress=Progress(quiet=quiet),
        digest_inputs=lambda: files_read(config),
    )


def _agreement(models: list[Path | None], shards: Path | None) -> list[Any]:
    from ava_core.evaluation.comparison.agreement import measure_agreement

    base, *others = models
    if shards is None or base is None:
        return [None for _ in others]
    return [None if other is None else measure_agreement(base, other, shards) for other in others]


def _print(comparison: dict[str, Any], output: Path | None) -> None:
    from ava_core.evaluation.comparison.table import basis, letters, tables

    for letter, side in zip(letters(len(comparison["sides"])), comparison["sides"], strict=True):
        print(f"{letter}  {side['name']}")
    print(f"\n{basis(comparison)}")
    for title, header, rows in tables(comparison):
        print(f"\n{title}" if title else "")
        print_table(header, rows, "")
    if output is not None:
        print(f"\nwrote {output / PAGE} and {JSON} beside it, with samples and losses by position and frequency")
