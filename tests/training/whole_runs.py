"""What tests of whole trainings share: how to kill one, how to spoil one of its batches, how to read what it left."""

import json
import math

from safetensors.torch import load_file

from ava_core.data.curriculum import CurriculumBatches
from ava_core.training.trainer import TrainingEngine


class Killed(BaseException):
    """Stands for SIGKILL inside a test process: nothing in the library catches it."""


def killed_at(call, number, *, before=True):
    """`call`, which raises `Killed` at its call `number` (from 1), before or after its work."""
    calls = 0

    def wrapped(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if before and calls == number:
            raise Killed
        result = call(*arguments, **keywords)
        if calls == number:
            raise Killed
        return result

    return wrapped


def spoil_batches(monkeypatch, *spoilt, loss=math.nan, gradient=None):
    """Batches with these numbers in the order of the data give `loss`, or only a `gradient` that holds that."""
    index = None
    draw, accumulate = CurriculumBatches.batch, TrainingEngine.accumulate

    def batch(self, step, *others, passed_over=0):
        nonlocal index
        index = step + passed_over
        return draw(self, step, *others, passed_over=passed_over)

    def spoiled(self, batch):
        figures = accumulate(self, batch)
        if index not in spoilt:
            return figures
        if gradient is not None:
            next(p for p in self.model.parameters() if p.grad is not None).grad.view(-1)[0] = gradient
            return figures
        return {**figures, "train_loss": loss}

    monkeypatch.setattr(CurriculumBatches, "batch", batch)
    monkeypatch.setattr(TrainingEngine, "accumulate", spoiled)


def rows(output):
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


def weights(output):
    return load_file(output / "model.safetensors")


def steps_kept(folder):
    return [int(path.name.removeprefix("step-")) for path in sorted(folder.glob("step-*[0-9]"))]
