"""Trainings of the tiny model after its pretraining, by the steps' own functions in this process."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ava_core.config import resolve
from ava_core.config.inheritance import read_architecture
from ava_core.config.model import ModelConfig
from ava_core.launching.launch import launch
from ava_core.progress import Progress
from ava_core.runtime.digests import digest_tree
from ava_core.training import trainer
from ava_core.training.request import TrainRequest
from tests.conftest import TINY_PARAMS, merged


def request_in(folder: Path, step: str, model: Path, shards: Path, settings: dict[str, Any]) -> TrainRequest:
    """Of a step into `folder`, which is emptied; the state beside it is what an earlier one has left.

    Args:
        folder: of the output.
        step: its name, and its section's.
        model: to begin from.
        shards: to train on.
        settings: of the section, over `TINY_PARAMS`.
    """
    params, state = folder.with_name(f"{folder.name}.yaml"), folder.with_name(f"{folder.name}.state")
    params.write_text(yaml.safe_dump(merged(TINY_PARAMS, {step: settings})))
    config = resolve(params=params).config
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    state.mkdir(exist_ok=True)
    return TrainRequest(
        step=step,
        model_config=ModelConfig.model_validate(read_architecture(model)),
        train_config=getattr(config, step),
        seed=config.seed,
        shards=shards,
        output=folder,
        state=state,
        threads=1,
        init=model,
    )


def run(request: TrainRequest) -> dict[str, float]:
    """The figures of a training."""
    return launch(request, Progress(quiet=True)).metrics


def assert_same_bytes_after_an_interruption(
    make: Callable[[str], TrainRequest], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was interrupted at `step` and run again ends as one that wasn't; `make` gives a request by its name."""
    whole = make("whole")
    run(whole)
    finish = trainer.Trainer._finish_step

    def stop(self, row):
        if row["step"] == step:
            raise KeyboardInterrupt
        finish(self, row)

    monkeypatch.setattr(trainer.Trainer, "_finish_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(make("again"))
    monkeypatch.undo()
    again = make("again")
    run(again)
    assert digest_tree(whole.output) == digest_tree(again.output)
