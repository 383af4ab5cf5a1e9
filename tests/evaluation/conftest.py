"""One evaluation of the tiny model, and the means to run others."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ava_core.config.evaluate import EvaluateConfig
from ava_core.progress import Progress

SETTINGS = {
    "batch_size": 4,
    "prompts": ["To be, or", "<script>alert('x')</script> & \"so\" on"],
    "generation": {"max_new_tokens": 8, "num_beams": 2},
}


@pytest.fixture(scope="session")
def run_evaluation(tiny_model, tiny_shards) -> Callable[..., SimpleNamespace]:
    """Evaluate into `folder`/output with state in `folder`/state; keywords replace arguments and settings."""
    from ava_core.evaluation.evaluate import evaluate

    def run(folder: Path, settings: dict | None = None, **arguments) -> SimpleNamespace:
        output, state = folder / "output", folder / "state"
        output.mkdir(parents=True)
        state.mkdir(exist_ok=True)
        defaults = {
            "config": EvaluateConfig(**{**SETTINGS, **(settings or {})}),
            "seed": 5,
            "model": tiny_model,
            "shards": tiny_shards,
            "quantized": [],
            "threads": 1,
            "progress": Progress(quiet=True),
        }
        result = evaluate(output=output, state=state, **{**defaults, **arguments})
        return SimpleNamespace(output=output, state=state, metrics=result.metrics, timings=result.timings)

    return run


@pytest.fixture(scope="session")
def evaluated(run_evaluation, tmp_path_factory):
    return run_evaluation(tmp_path_factory.mktemp("evaluated"))
