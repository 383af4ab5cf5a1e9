"""Checkpoints: what a kill, a full disk and changed bytes leave; which are kept; that resuming changes no bit."""

import errno
import json
import os
import threading
from dataclasses import dataclass

import pytest
import torch

from ava_core.config.train import TrainConfig
from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.runtime.work import WorkStore
from ava_core.training.checkpoints import CheckpointFolder, check_resume, chosen, resume_from, writing
from ava_core.training.checkpoints.writing import Job, copied
from tests.training.checkpoints.zero_worker import HALF, IDENTITY, WHOLE, advance, build, weights

ALONE = Ranks()


class Killed(BaseException):
    """Stands for SIGKILL inside a test process: nothing in the library catches it and goes on."""


@pytest.fixture
def engine():
    return build(0, ALONE)


@pytest.fixture
def folder(tmp_path):
    return new_folder(tmp_path)


def new_folder(tmp_path, **config):
    return CheckpointFolder(tmp_path / "checkpoints", TrainConfig(**config), ALONE, IDENTITY)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_n_and_n_steps_are_2n_steps_to_the_bit(engine, folder):
    torch.manual_seed(1)
    advance(engine, ALONE, 0, HALF)
    folder.save(engine, HALF, {"clock": {"seconds": 1.5, "factors": torch.ones(2)}}, 3.0, tokens_seen=64)
    advance(engine, ALONE, HALF, WHOLE)  # while it is written
    folder.close()
    whole = weights(engine)
    other = build(0, ALONE)
    restored = folder.restore(other)
    assert (restored.step, restored.tokens_seen) == (HALF, 64)
    assert restored.parts["clock"]["seconds"] == 1.5 and restored.parts["clock"]["factors"].tolist() == [1, 1]
    advance(other, ALONE, HALF, WHOLE)
    assert same(weights(other), whole)
    assert whole["batches"].item() == WHOLE


def test_without_its_random_numbers_a_resumed_run_would_differ(engine, folder):
    """The model drops out, so the test above would fail if they weren't restored."""
    advance(engine, ALONE, 0, HALF)
    folder.save(engine, HALF, {})
    advance(engine, ALONE, HALF, WHOLE)
    other = build(0, ALONE)
    folder.restore(other)
    torch.manual_seed(2)
    advance(other, ALONE, HALF, WHOLE)
    assert not same(weights(other), weights(engine))


def test_state_is_copied_before_the_next_step_changes_it(engine, folder, monkeypatch):
    go_on, save = threading.Event(), torch.save
    monkeypatch.setattr(torch, "save", lambda *args, **options: (go_on.wait(30), save(*args, **options)))
    advance(engine, ALONE, 0, HALF)
    before = weights(engine)
    folder.save(engine, HALF, {})
    advance(engine, ALONE, HALF, WHOLE)
    assert not folder.all() and not same(weights(engine), before)
    go_on.set()
    folder.close()
    other = build(0, ALONE)
    folder.restore(other)
    assert same(weights(other), before)


def test_death_at_any_point_of_writing_leaves_whole_checkpoints(engine, tmp_path, monkeypatch):
    """Each flush and each rename is a point; before the last but one rename the older checkpoint is the newest."""
    steps, points = [], 0
    while True:
        folder = new_folder(tmp_path / str(points), keep_checkpoints=1)
        folder.save(engine, 2, {"name": {"value": 2}})
        folder.wait()
        with monkeypatch.context() as patch:
            calls = die_at(patch, points)
            folder.save(engine, 4, {"name": {"value": 4}})
            try:
                folder.wait()
            except Killed:
                pass
            else:
                break
        assert len(calls) == points + 1
        again = new_folder(tmp_path / str(points))
        restored = again.restore(engine)
        for checkpoint in again.all():
            checkpoint.verify()
        assert not [path for path in again.folder.iterdir() if path.suffix]
        assert restored.parts == {"name": {"value": restored.step}}
        steps.append(restored.step)
        points += 1
    assert points > 10 and set(steps) == {2, 4} and steps == sorted(steps)


def die_at(patch, point):
    calls = []
    for name in ("rename", "replace", "fsync"):
        real = getattr(os, name)

        def call(*args, real=real, **options):
            calls.append(real)
            if len(calls) > point:
                raise Killed
            return real(*args, **options)

        patch.setattr(os, name, call)
    return calls


def test_death_in_the_middle_of_a_file_leaves_the_checkpoint_before(engine, folder, monkeypatch):
    folder.save(engine, 2, {})
    folder.wait()

    def half(state, path, **_):
        path.write_bytes(b"half a fi")
        raise Killed

    monkeypatch.setattr(torch, "save", half)
    folder.save(engine, 4, {})
    with pytest.raises(Killed):
        folder.close()
    assert folder.restore(engine).step == 2


@pytest.mark.parametrize("kind", ["engine/mp_rank_00_model_states.pt", "rank-00000.pt", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damaged_file_is_refused_by_name_and_the_checkpoint_before_is_used(engine, folder, kind, damage, caplog):
    for step in (2, 4):
        folder.save(engine, step, {})
    folder.wait()
    harm(folder.all()[-1].folder / kind, damage)
    assert folder.restore(engine).step == 2
    assert str(folder.folder / "step-00000004" / kind) in caplog.text
    harm(folder.all()[0].folder / kind, damage)
    assert folder.restore(engine) is None


def harm(path, damage):
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-1] if path.suffix == ".pt" else content[:-3])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_nothing_is_unpickled_before_its_digest_matched(engine, folder, monkeypatch):
    folder.save(engine, 2, {})
    folder.wait()
    for path in folder.all()[0].folder.rglob("*.pt"):
        harm(path, "flipped")
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("loaded"))
    assert folder.restore(engine) is None


def test_full_disk_is_told_in_one_line_at_the_next_save(engine, folder, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder.save(engine, 2, {})
    folder.wait()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        folder.save(engine, 4, {})
        with pytest.raises(AvaError, match=r"checkpoints.*: no space left on the disk") as caught:
            folder.save(engine, 6, {})
    assert "\n" not in str(caught.value)
    folder.close()  # told once
    assert [item.step for item in folder.all()] == [2]
    assert folder.restore(engine).step == 2


def test_unwritable_file_is_told_at_close(engine, folder, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("stream gone\nand more")

    monkeypatch.setattr(torch, "save", broken)
    folder.save(engine, 2, {})
    with pytest.raises(AvaError, match=r"step-00000002: the checkpoint can't be written: stream gone$"):
        folder.close()


@dataclass(frozen=True)
class Saved:
    step: int
    validation_loss: float | None = None


LOSSES = [Saved(0), Saved(10, 3.0), Saved(20, 2.0), Saved(30), Saved(40, 2.0), Saved(50, 2.5)]


@pytest.mark.parametrize(
    ("config", "running", "finished"),
    [
        ({"keep_checkpoints": 2}, [40, 50], []),
        ({"keep_checkpoints": 9}, [0, 10, 20, 30, 40, 50], []),
        ({"keep_checkpoints": 1, "keep_best_checkpoint": True}, [20, 50], [20]),
        ({"keep_checkpoints": 2, "keep_last_checkpoint": True}, [40, 50], [50]),
        ({"keep_checkpoints": 1, "keep_checkpoint_every": 20}, [20, 40, 50], [20, 40]),
        ({"keep_checkpoints": 1, "keep_checkpoint_every": 30, "keep_best_checkpoint": True}, [20, 30, 50], [20, 30]),
    ],
)
def test_policy(config, running, finished):
    config = TrainConfig(**config)
    assert [item.step for item in chosen(LOSSES, config)] == running
    assert [item.step for item in chosen(LOSSES, config, finished=True)] == finished


def test_without_a_measured_loss_there_is_no_best():
    assert chosen([Saved(10), Saved(20)], TrainConfig(keep_best_checkpoint=True), finished=True) == []


def test_best_and_last_are_what_is_left_on_the_disk(engine, tmp_path):
    folder = new_folder(tmp_path, keep_checkpoints=1, keep_best_checkpoint=True)
    for step, loss in ((1, 3.0), (2, 2.0), (3, float("nan")), (4, 2.5)):
        folder.save(engine, step, {}, loss)
    folder.close()
    assert sorted(path.name for path in folder.folder.iterdir()) == ["step-00000002", "step-00000004"]


def test_rewind_passes_over_and_forgets_what_came_after(engine, tmp_path):
    folder = new_folder(tmp_path, keep_checkpoints=3)
    for step in (2, 4, 6):
        folder.save(engine, step, {})
    assert folder.restore(engine, lambda step: step < 6).step == 4
    assert [item.step for item in folder.all()] == [2, 4, 6]
    folder.forget_after(4)
    assert [item.step for item in folder.all()] == [2, 4]
    assert folder.restore(engine, lambda step: step < 2) is None


def test_kept_checkpoints_outlive_the_work_that_made_them(engine, tmp_path):
    entry = WorkStore(tmp_path).entry("train", "k" * 64)
    config = TrainConfig(keep_best_checkpoint=True)
    folder = CheckpointFolder(entry.state / "checkpoints", config, ALONE, IDENTITY)
    for step, loss in ((2, 2.0), (4, 3.0)):
        folder.save(engine, step, {}, loss)
    folder.keep(entry.keeping / "checkpoints")
    assert [item.step for item in folder.all()] == [2, 4]  # a kill from here on loses nothing
    entry.output.mkdir()
    entry._end_state()
    assert not entry.state.exists()
    found = check_resume(entry.kept / "checkpoints", IDENTITY, config, ALONE)
    assert (found.step, found.folder.name) == (2, "step-00000002")
    found.verify()
    size = sum(path.stat().st_size for path in entry.kept.rglob("*") if path.is_file())
    (entry.folder / "lock").touch()
    assert WorkStore(tmp_path).entries()[0][2] >= size > 0


def test_resumed_run_has_its_own_rates_and_the_moments_of_the_checkpoint(engine, folder):
    advance(engine, ALONE, 0, HALF)
    folder.save(engine, HALF, {})
    folder.close()
    other = build(0, ALONE, rate=1e-3)
    restored = resume_from(other, folder.folder, IDENTITY, ALONE, TrainConfig(schedule="wsd", steps=1000))
    assert restored.step == HALF
    assert [(g["lr"], g["peak_lr"], g["weight_decay"]) for g in other.deepspeed.optimizer.param_groups] == [
        (1e-3, 1e-3, 0.1),
        (1e-3, 1e-3, 0.0),
    ]
    ours, theirs = (next(iter(e.deepspeed.optimizer.state.values())) for e in (other, engine))
    assert torch.equal(ours["exp_avg"], theirs["exp_avg"]) and ours["step"] == HALF


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "2" * 64}, "was trained with another model: give the model that it was trained with"),
        ({"tokenizer": "2" * 64}, "was trained with another tokenizer"),
        ({"optimizer": "muon"}, "was trained with optimizer = adamw, not muon: set train.optimizer = adamw"),
        ({"precision": "bf16"}, "was trained with precision = fp32, not bf16"),
    ],
)
def test_resume_of_something_else_is_refused(engine, folder, change, message):
    folder.save(engine, 2, {})
    folder.close()
    with pytest.raises(ConfigError, match=message) as caught:
        check_resume(folder.folder, IDENTITY | change, TrainConfig(), ALONE)
    assert str(caught.value).startswith(f"--resume {folder.folder}: ") and "\n" not in str(caught.value)
    assert check_resume(folder.folder / "step-00000002", IDENTITY, TrainConfig(), ALONE).step == 2


def test_resume_of_what_is_no_checkpoint_is_refused(tmp_path, engine, folder):
    (tmp_path / "model").mkdir()
    for path in (tmp_path / "model", tmp_path / "absent"):
        with pytest.raises(ConfigError, match=r"not a checkpoint: it has no checkpoint\.json"):
            check_resume(path, IDENTITY, TrainConfig(), ALONE)
    folder.save(engine, 2, {})
    folder.close()
    harm(folder.all()[0].folder / "rank-00000.pt", "flipped")
    with pytest.raises(IntegrityError, match=r"rank-00000\.pt: its bytes"):
        resume_from(engine, folder.folder, IDENTITY, ALONE, TrainConfig())


def job(tmp_path, rank, **options):
    partial = tmp_path / "step-00000002.partial"
    files = [(partial / f"rank-{rank:05d}.pt", {"rank": rank})]
    return Job(partial, tmp_path / "step-00000002", files, {"step": 2, "validation_loss": None}, rank, 2, **options)


def test_first_rank_waits_for_the_files_of_the_others(tmp_path):
    first, second = job(tmp_path, 0), job(tmp_path, 1)
    thread = threading.Thread(target=first.write)
    thread.start()
    second.write()
    thread.join()
    record = json.loads((tmp_path / "step-00000002" / "checkpoint.json").read_text())
    assert sorted(record["files"]) == ["rank-00000.pt", "rank-00001.pt"]


def test_checkpoint_without_a_ranks_files_is_given_up(tmp_path):
    with pytest.raises(AvaError, match="rank 1 has not written its part"):
        job(tmp_path, 0, wait_seconds=0.0).write()
    assert not (tmp_path / "step-00000002").exists()


def test_run_that_fails_waits_no_longer_for_another_ranks_files(tmp_path, monkeypatch):
    """And its own fault is what the user sees."""
    monkeypatch.setattr(writing, "GRACE_SECONDS", 0.0)
    folder = new_folder(tmp_path)
    folder._writer.start(job(tmp_path, 0, failing=folder._failing).write)
    with pytest.raises(AvaError, match="its own fault"):
        try:
            raise AvaError("its own fault")
        finally:
            folder.close()


def test_what_another_rank_met_is_passed_on(tmp_path, monkeypatch):
    def broken(*args, **options):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", broken)
        with pytest.raises(AvaError, match="Input/output error"):
            job(tmp_path, 1).write()
    with pytest.raises(AvaError, match=r"rank 1 couldn't write its part: .*Input/output error"):
        job(tmp_path, 0).write()


def test_copies_keep_what_is_shared_and_leave_out_what_views_are_of():
    base = torch.arange(100.0)
    state = copied({"tied": [base[:3], base[:3]], "nested": {"size": torch.Size([2])}, "pair": (base[5], 1)})
    base.zero_()
    assert state["tied"][0] is state["tied"][1] and state["tied"][0].tolist() == [0, 1, 2]
    assert state["tied"][0].untyped_storage().nbytes() == 12
    assert state["nested"]["size"] == torch.Size([2]) and state["pair"][0] == 5
