"""`launch()` on a tiny corpus, for the tests that hold whole trainings to what they promise."""

import functools
import shutil

import pytest

from ava_core.config import resolve
from ava_core.progress import Progress
from tests.conftest import merged


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch):
    """What a training's speed is compared with is measured in two passes over the products, not in as many as fit into
    a third of a second: as long as the six steps of most trainings here."""
    from ava_core.training import train

    monkeypatch.setattr(train, "measure_peak", functools.partial(train.measure_peak, seconds=0.0))


@pytest.fixture
def run(tmp_path, tiny_shards, make_params, quick_peak):
    """Call `launch()` with changed parameters; the output is `tmp_path / name`, the state stays for the next call."""
    from ava_core.launching.launch import launch
    from ava_core.training.request import TrainRequest

    def call(
        name, *, init=None, resume=None, reference=None, teacher=None, shards=tiny_shards, profile=None, **changes
    ):
        if init is not None:
            changes = merged(changes, {"train": {"init": str(init)}})
        if teacher is not None:
            changes = merged(changes, {"train": {"teacher": {"model": str(teacher)}}})
        config = resolve(params=make_params(**changes)).config
        output, state = tmp_path / name, tmp_path / f"{name}.state"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        state.mkdir(exist_ok=True)
        request = TrainRequest(
            model_config=config.model,
            train_config=config.train,
            seed=config.seed,
            shards=shards,
            output=output,
            state=state,
            threads=1,
            init=init,
            resume=resume,
            reference=reference,
            teacher=teacher,
            work=tmp_path / "work",
            kept=tmp_path / f"{name}.kept",
            profile=profile,
        )
        return output, launch(request, Progress(quiet=True))

    return call
