"""`ava train` with wrong input: refused before the first step, a line per fault with the way out; and its policies."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from datasets.table import InMemoryTable

from ava_core.config import resolve
from ava_core.data.shard_writing import TokenizedDocument, write_split, write_splits_info
from ava_core.data.shards import SplitInfo, SplitsInfo, load_splits_info
from ava_core.training import explore
from ava_core.training.trainer import TrainingEngine
from tests.cli.conftest import ava  # noqa: F401  a fixture
from tests.conftest import _finished as finished
from tests.training.whole_runs import Killed, steps_kept


@pytest.fixture
def ava_train(ava, tmp_path, tiny_shards, make_params):  # noqa: F811
    """`ava train` in this process; keywords are sections of the parameters. The output is `tmp_path / "model"`."""

    def call(*flags, shards=tiny_shards, **changes):
        params = make_params(**changes)
        folders = ("--output", tmp_path / "model", "--work", tmp_path / "work")
        return ava("train", "--shards", shards, "--params", params, *folders, "--quiet", "--log-level", "error", *flags)

    return call


@pytest.fixture
def no_steps(monkeypatch):
    """A first step would end the test."""

    def step(*_):
        raise Killed

    monkeypatch.setattr(TrainingEngine, "accumulate", step)


def assert_refused(result, tmp_path, *lines, code=2):
    """Exit code and exactly these lines, which are regular expressions; no output."""
    assert result.code == code, result.err
    printed = result.err.splitlines()
    assert len(printed) == len(lines), result.err
    for line, expected in zip(printed, lines, strict=True):
        assert re.match(f"ava: .*{expected}", line), result.err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("train", "line"),
    [
        ({"global_batch_size": 5}, r"global_batch_size = 5: must be a multiple of micro_batch_size = 2"),
        (
            {"global_batch_size": 6, "processes": 2},
            r"global_batch_size = 6: must be a multiple of micro_batch_size x processes = 2 x 2",
        ),
        ({"optimizer": "adafactor", "zero_stage": 1}, r"zero_stage = 1: adafactor .*use stage 0, or adamw, muon, lion"),
        ({"optimizer": "sophia", "zero_stage": 2}, r"zero_stage = 2: sophia.*use stage 0, or adamw, muon, lion"),
        ({"optimizer": "adamw_8bit", "zero_stage": 1}, r"zero_stage = 1: adamw_8bit .*use stage 0, or adamw"),
        ({"optimizer": "adamw_schedule_free"}, r"schedule = cosine: adamw_schedule_free averages .*: use constant"),
        (
            {"optimizer": "adamw_schedule_free", "schedule": "constant", "ema": {"decay": 0.9}},
            r"ema\.decay = 0\.9: adamw_schedule_free averages the weights itself: leave it out",
        ),
        (
            {"optimizer": "adamw_schedule_free", "schedule": "constant", "adam_beta1": 0.0},
            r"adam_beta1 = 0: adamw_schedule_free divides by it: must be > 0",
        ),
        ({"schedule": "cosine_restarts", "restart_period": 0}, r"train\.restart_period = 0: must be > 0"),
        ({"schedule": "inverse_sqrt", "warmup_steps": 0}, r"warmup_steps = 0: inverse_sqrt falls by the length"),
        ({"warmup_shape": "sine"}, r"train\.warmup_shape = .*sine.*: must be"),
        ({"gradient_surgery": True, "zero_stage": 3}, r"zero_stage = 3: gradient_surgery .*use stage 0"),
        ({"offload": "optimizer"}, r"offload = optimizer: needs zero_stage 1, 2 or 3"),
        ({"offload": "all", "zero_stage": 2}, r"offload = all: needs zero_stage 3, not 2"),
        ({"curriculum": {"sequence_lengths": [24]}}, r"sequence_lengths = \[24\]: each must divide .*= 64; 24 doesn't"),
        ({"curriculum": {"batch_sizes": [3]}}, r"batch_sizes = \[3\]: must grow up to global_batch_size = 4 in mult"),
        ({"ema": {"decay": 1.0}}, r"train\.ema\.decay = 1\.0: must be < 1"),
        ({"warmup_steps": 6}, r"warmup_steps = 6: must be < steps = 6"),
        ({"memory_budget": 1.0, "gradient_checkpointing": True}, r"memory_budget: decides .* must be false"),
        ({"optimizer": "adam"}, r"train\.optimizer = .*adam.*: must be"),
        ({"sequence_length": 256}, r"train\.sequence_length = 256: must be <= model\.max_position_embeddings = 128"),
    ],
)
def test_configuration_that_can_not_be_trained(ava_train, tmp_path, no_steps, train, line):
    assert_refused(ava_train(train=train), tmp_path, line)


def test_every_fault_has_its_line(ava_train, tmp_path, no_steps):
    result = ava_train(train={"ema": {"decay": 1.0}, "steps": 0, "guard": {"window": 1}})
    lines = sorted(result.err.splitlines())
    assert result.code == 2 and len(lines) == 3
    assert [name for name in ("ema.decay", "guard.window", "steps") if f"train.{name} = " in result.err] == [
        "ema.decay",
        "guard.window",
        "steps",
    ]


def test_more_processes_than_devices(ava_train, tmp_path, no_steps):
    result = ava_train(train={"processes": 512, "global_batch_size": 1024})
    assert_refused(result, tmp_path, r"train\.processes = 512: this machine has \d+ .*: use at most \d+ processes")


def test_half_precision_without_support(ava_train, tmp_path, no_steps, monkeypatch):
    from ava_core.distributed.deepspeed import import_deepspeed

    accelerator = import_deepspeed().accelerator.get_accelerator()
    monkeypatch.setattr(type(accelerator), "is_fp16_supported", lambda self: False)
    result = ava_train(train={"precision": "fp16"})
    assert_refused(result, tmp_path, r"train\.precision = fp16: this CPU has no float16 products: use bf16")


def test_model_that_no_machine_holds_is_refused_before_it_is_built(ava_train, tmp_path, no_steps):
    result = ava_train(model={"hidden_size": 2**20})
    line = r"train: [\d,]+ parameters take at least [\d,.]+ GiB, and this machine has [\d.]+ GiB .*: lower model\."
    assert_refused(result, tmp_path, line)


def test_budget_that_no_recomputation_fits_into(ava_train, tmp_path, no_steps):
    result = ava_train(train={"memory_budget": 0.001})
    line = r"train\.memory_budget = 0\.001 GiB: training takes about .* even if all 2 layers recompute: raise it, or"
    assert_refused(result, tmp_path, line)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_offloading_without_a_gpu_is_said_to_be_of_no_use(run, caplog):
    run("model", train={"zero_stage": 1, "offload": "optimizer", "steps": 2})
    assert "train.offload = optimizer: there is no GPU here whose memory it would relieve" in caplog.text


# Shards


@pytest.fixture
def shards_with(tmp_path, tiny_shards):
    """Shards like the others, with so many tokens in one split."""

    def make(split, tokens):
        folder = tmp_path / "shards"
        shutil.copytree(tiny_shards, folder)
        shutil.rmtree(folder / split)
        info = load_splits_info(tiny_shards)
        document = TokenizedDocument("a", np.full(max(tokens - 1, 0), 7, np.uint16), tokens)
        sizes = {"vocab_size": info.vocab_size, "boundary_token_id": 0}
        counts = write_split(folder / split, [document], **sizes, shard_tokens=8_192)
        if not tokens:
            rows = load_from_disk(folder / split).data.table.combine_chunks()
            shutil.rmtree(folder / split)
            Dataset(InMemoryTable(rows.slice(0, 0))).save_to_disk(folder / split, num_shards=1)
            counts = SplitInfo(num_bytes=0, num_tokens=0, num_documents=0, num_shards=1)
        write_splits_info(folder, SplitsInfo(**sizes, dtype=info.dtype, splits={**info.splits, split: counts}))
        return finished(folder, "preprocess", {"data": "0" * 64})

    return make


def test_training_split_that_is_shorter_than_a_sequence(ava_train, tmp_path, no_steps, shards_with):
    result = ava_train(shards=shards_with("train", 40))
    line = r"the training split has 40 tokens: train\.sequence_length = 64 needs at least 65: give more text or shorter"
    assert_refused(result, tmp_path, line, code=1)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_empty_shard(ava_train, tmp_path, no_steps, shards_with, split):
    folder = shards_with(split, 0)
    line = re.escape(
        f"{folder / split}/data-00000-of-00001.arrow: holds no document: run `ava preprocess` again, with more"
    )
    assert_refused(ava_train(shards=folder), tmp_path, line, code=1)


def test_shard_whose_bytes_were_changed(ava_train, tmp_path, no_steps, shards_with):
    folder = shards_with("train", 400)
    file = next((folder / "train").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-9])
    assert_refused(ava_train(shards=folder), tmp_path, re.escape(str(file)), code=1)


# Checkpoints by the command line


@pytest.fixture
def kept(ava_train, tmp_path):
    """A finished run, and what it has kept in the work folder."""
    settings = {"keep_best_checkpoint": True, "keep_checkpoint_every": 2, "evaluate_every": 3, "checkpoint_every": 1}
    result = ava_train(train=settings)
    assert result.code == 0, result.err
    (folder,) = (tmp_path / "work" / "train").glob("*/kept/checkpoints")
    shutil.move(tmp_path / "model", tmp_path / "finished")
    return folder


@pytest.mark.slow
def test_policies_leave_checkpoints_that_another_training_goes_on_from(kept, ava_train, tmp_path):
    history = [json.loads(line) for line in (tmp_path / "finished" / "history.jsonl").read_text().splitlines()]
    measured = {row["step"]: row["validation_loss"] for row in history if "validation_loss" in row}
    best = min(measured, key=measured.get)
    assert steps_kept(kept) == sorted({2, 4, 6, best})
    entry = kept.parent.parent
    assert not (entry / "state").exists()
    result = ava_train("--resume", kept / "step-00000004", train={"steps": 8, "schedule": "constant"})
    assert result.code == 0, result.err
    history = [json.loads(line) for line in (tmp_path / "model" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == [5, 6, 7, 8]
    assert json.loads((tmp_path / "model" / "metrics.json").read_text())["tokens_seen"] == 8 * 4 * 64


def test_resume_folder_of_something_else(kept, ava_train, tmp_path, no_steps, tiny_shards):
    fault = re.escape(f"--resume {kept}: was trained with")
    result = ava_train("--resume", kept, model={"num_layers": 3}, train={"optimizer": "lion"})
    assert_refused(result, tmp_path, f"{fault} another model: give the model", f"{fault} optimizer = muon, not lion")

    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    tokenizer = shards / "tokenizer" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    finished(shards, "preprocess", {"data": "0" * 64})
    assert_refused(ava_train("--resume", kept, shards=shards), tmp_path, f"{fault} another tokenizer: give the tok")

    result = ava_train("--resume", tmp_path / "finished")
    assert_refused(result, tmp_path, re.escape(f"--resume {tmp_path / 'finished'}: not a checkpoint"))
    result = ava_train("--resume", tmp_path / "gone")
    assert_refused(result, tmp_path, re.escape(f"--resume {tmp_path / 'gone'}: no such folder"), code=1)
    assert_refused(ava_train("--resume", kept), tmp_path, r"--resume \S+: is of step 6: train\.steps = 6 .*more")


# The learning-rate finder


@pytest.mark.slow
def test_finder_writes_its_files_and_no_work(ava_train, tmp_path, monkeypatch):
    monkeypatch.setattr(explore, "STEPS", 24)
    result = ava_train("--find-lr")
    assert result.code == 0, result.err
    model = tmp_path / "model"
    assert {path.name for path in model.iterdir()} == {"learning_rate.json", "learning_rate.png"}
    found = json.loads((model / "learning_rate.json").read_text())
    assert found["settings"].keys() == {"train.learning_rate", "train.adam_learning_rate"}
    assert 10 <= len(found["rates"]) <= 24 and found["rates"] == sorted(found["rates"])
    assert (model / "learning_rate.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "work").glob("*/*"))


@pytest.mark.slow
def test_finder_writes_what_it_found_into_the_parameters_and_shows_the_curve(
    ava_train, tmp_path, monkeypatch, make_params
):
    monkeypatch.setattr(explore, "STEPS", 24)
    train = {"learning_rate": None, "adam_learning_rate": None}
    params = make_params(train=train)
    before = params.read_text()
    result = ava_train("--find-lr", "--write", "--criterion", "steepest", train=train)
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "model" / "learning_rate.json").read_text())
    rate, adam = (float(f"{value:.3g}") for value in found["settings"].values())
    lines = zip(params.read_text().splitlines(), before.splitlines(), strict=True)
    changed = [line for line, old in lines if line != old]
    assert [line.split(":")[0].strip() for line in changed] == ["adam_learning_rate", "learning_rate"]
    values = resolve(params=params).config.train
    assert (values.learning_rate, values.adam_learning_rate) == (rate, adam)
    assert "> s steepest" in result.out and "  v valley" in result.out


@pytest.mark.parametrize(
    ("flags", "train", "line"),
    [
        (["--write"], {}, r"--write: means something only with --find-lr"),
        (["--criterion", "valley"], {}, r"--criterion: means something only with --find-lr"),
        (["--find-lr", "--criterion", "best"], {}, r"--criterion best: must be one of minimum, steepest, valley, div"),
        (
            ["--find-lr", "--write"],
            {"learning_rate": 1},
            r"--write: \S+ has no train\.adam_learning_rate: add `adam_le",
        ),
        (
            ["--find-lr", "--write", "--set", "train.learning_rate=0.1"],
            {"learning_rate": 1, "adam_learning_rate": 1},
            r"--write: train\.learning_rate is set by --set, above \S+: leave it out there",
        ),
    ],
)
def test_finder_refuses_what_it_cannot_write_before_the_search(ava_train, tmp_path, no_steps, flags, train, line):
    result = ava_train(*flags, train=train)
    assert result.code == 2
    assert re.match(f"ava: {line}", result.err), result.err
    assert not (tmp_path / "model").exists()


def test_finder_touches_no_folder_that_holds_something(ava_train, tmp_path, no_steps):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("kept")
    result = ava_train("--find-lr")
    assert result.code == 2
    assert (
        result.err
        == f"ava: --output {tmp_path / 'model'}: exists: give another folder for the search of a learning rate\n"
    )
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine"]
    assert (tmp_path / "model" / "mine").read_text() == "kept"
