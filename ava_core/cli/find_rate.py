"""`ava train --find-lr`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ava_core.cli.step_command import Instead

if TYPE_CHECKING:
    from ava_core.runtime.request import Request


def _find_rate(request: Request) -> None:
    from ava_core.errors import ConfigError
    from ava_core.runtime.step import prepare_inputs

    output = request.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output}: exists: give another folder for the search of a learning rate")
    prepare_inputs(request)
    from ava_core.training.explore import explore_rates

    explore_rates(
        model_config=request.config.model,
        train_config=request.config.train,
        seed=request.config.seed,
        shards=request.inputs["shards"][0],
        output=output,
        threads=request.threads,
        progress=request.progress,
        init=next(iter(request.inputs["init"]), None),
    )


FIND_RATE = Instead(
    flag="find_lr",
    help="Search for a learning rate instead of training: OUTPUT gets learning_rate.json and its plot.",
    call=lambda request, _: _find_rate(request),
)
