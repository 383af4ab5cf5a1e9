"""`ava train --find-lr`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.cli.step_flags import Instead, flag_of

if TYPE_CHECKING:
    from ava_core.runtime.request import Request
    from ava_core.training.find_rate import RateSearch

ROWS, COLUMNS = 10, 72
"""Of the curve on the terminal."""


def _find_rate(request: Request, flags: Mapping[str, Any]) -> None:
    from ava_core.errors import ConfigError
    from ava_core.runtime.step import prepare_inputs

    output, params = request.output, flags["params"]
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output}: exists: give another folder for the search of a learning rate")
    if flags["write"]:
        _require_writable(request, flags)
    from ava_core.training.find_rate import CRITERIA

    if flags["criterion"] not in CRITERIA:
        raise ConfigError(f"--criterion {flags['criterion']}: must be one of {', '.join(CRITERIA)}")
    if request.config.train.teacher.model is not None:
        raise ConfigError("train.teacher.model: a search of the rate knows no teacher: leave it out for --find-lr")
    prepare_inputs(request)
    from ava_core.training.explore import explore_rates

    search = explore_rates(
        model_config=request.config.model,
        train_config=request.config.train,
        seed=request.config.seed,
        shards=request.inputs["shards"][0],
        output=output,
        threads=request.threads,
        progress=request.progress,
        init=next(iter(request.inputs["init"]), None),
        criterion=flags["criterion"],
    )
    print(draw(search))
    if flags["write"]:
        _write(params, search.settings)


def _keys(request: Request) -> list[str]:
    """What a search finds, as `RateSearch.settings` has it."""
    return ["train.learning_rate", *(["train.adam_learning_rate"] if request.config.train.optimizer == "muon" else [])]


def _require_writable(request: Request, flags: Mapping[str, Any]) -> None:
    """Refuse, before the search, to write where it couldn't be read from, or where no key is.

    Raises:
        ConfigError: one line per fault.
    """
    from ava_core.config import resolve
    from ava_core.config.yaml_edit import missing_keys
    from ava_core.errors import ConfigError

    params: Path | None = flags["params"]
    if params is None:
        raise ConfigError("--write: writes into the file of --params: give one")
    resolved = resolve(params=params, config_files=flags["config"] or (), overrides=flags["set_"] or ())
    above = {*map(str, flags["config"] or ()), "--set"}
    faults = [
        f"--write: {key} is set by {resolved.origins[key]}, above {params}: leave it out there"
        for key in _keys(request)
        if resolved.origins[key] in above
    ]
    missing = missing_keys(params.read_text(encoding="utf-8"), _keys(request))
    faults += [
        f"--write: {params} has no {key}: add `{key.rpartition('.')[2]}: null` to its section train" for key in missing
    ]
    if faults:
        raise ConfigError(*faults)


def _write(params: Path, settings: Mapping[str, float]) -> None:
    import logging

    from ava_core.config.yaml_edit import set_numbers
    from ava_core.config.yaml_text import YamlError
    from ava_core.errors import ConfigError
    from ava_core.files import write_whole

    rounded = {key: float(f"{value:.3g}") for key, value in settings.items()}
    try:
        text = set_numbers(params.read_text(encoding="utf-8"), rounded)
    except YamlError as error:
        raise ConfigError(f"{params}: {error}") from error
    write_whole(params, text)
    written = ", ".join(f"{key} = {value:g}" for key, value in rounded.items())
    logging.getLogger(__name__).info("find-lr: wrote %s into %s", written, params)


def draw(search: RateSearch) -> str:
    """The smoothed loss over the rate, with what each criterion suggests, as lines of text."""
    import math

    from ava_core.training.find_rate import CRITERIA

    first, last = math.log(search.rates[0]), math.log(search.rates[-1])
    low, high = min(search.smoothed), max(search.smoothed)

    def column(rate: float) -> int:
        share = (math.log(rate) - first) / (last - first)
        return min(COLUMNS - 1, max(0, round(share * (COLUMNS - 1))))

    grid = [[" "] * COLUMNS for _ in range(ROWS)]
    letters = {name: name[0] for name in CRITERIA}
    for name, rate in search.suggestions.items():
        for row in grid:
            row[column(rate)] = letters[name]
    for rate, loss in zip(search.rates, search.smoothed, strict=True):
        grid[round((high - loss) / ((high - low) or 1.0) * (ROWS - 1))][column(rate)] = "*"
    labels = [f"{high:8.3f}", *[" " * 8] * (ROWS - 2), f"{low:8.3f}"]
    lines = [f"{label} |{''.join(row).rstrip()}" for label, row in zip(labels, grid, strict=True)]
    lines += [" " * 9 + "+" + "-" * COLUMNS]
    lines += [" " * 10 + f"{search.rates[0]:<{COLUMNS // 2}.2g}{search.rates[-1]:>{COLUMNS // 2}.2g}", ""]
    for name, (meaning, _) in CRITERIA.items():
        mark = ">" if name == search.criterion else " "
        lines.append(f"{mark} {letters[name]} {name:<10} {search.suggestions[name]:>9.3g}  {meaning}")
    return "\n".join(lines)


FIND_RATE = Instead(
    flag="find_lr",
    help="Search for a learning rate instead of training: OUTPUT gets learning_rate.json and its plot.",
    call=_find_rate,
    options={
        "criterion": flag_of(
            str,
            "minimum",
            "With --find-lr: which rate of the curve counts: minimum, steepest, valley or divergence.",
        ),
        "write": flag_of(bool, False, "With --find-lr: write what was found into the file of --params.", "--write"),
    },
)
