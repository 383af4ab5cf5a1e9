"""`train.compile`: what is compiled, when, and with what results."""

import math
import re
import stat
from dataclasses import replace
from functools import partial

import pytest
import torch

from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError, ConfigError
from ava_core.models.diagnosis import NonFiniteError
from ava_core.training import compiler, preconditions
from ava_core.training.engine import compiled
from ava_core.training.trainer import TrainingEngine
from tests.training.engine import rank_runs
from tests.training.engine.rank_runs import build_engine, on_ranks, settings, tiny, windows
from tests.training.whole_runs import Killed, killed_at, weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(compiler.CACHE, str(tmp_path / "compiled"))


@pytest.fixture
def calls(monkeypatch):
    """Layers that ran compiled, by the number of calls; nothing is compiled really."""
    made = []

    def compile_(forward, **_):
        def counted(*arguments, **keywords):
            made.append(len(made))
            return forward(*arguments, **keywords)

        return counted

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(compiled, "require_compiler", lambda: None)
    return made


def build(model=None, **overrides):
    return build_engine(tiny(hidden_size=32, **(model or {})), settings(compile=True, **overrides), Ranks())


def test_layers_are_compiled_in_passes_that_are_trained_and_nowhere_else(calls):
    engine = build()
    engine.accumulate(windows(0))
    assert len(calls) == 4 * 2  # micro-batches, layers
    engine.model.eval()
    engine.model(windows(0).input_ids)
    assert len(calls) == 4 * 2 and not any("forward" in vars(layer) for layer in engine.model.model.layers)


def test_recomputation_runs_compiled_too_and_records_no_routes(calls):
    engine = build(gradient_checkpointing=True)
    engine.accumulate(windows(0))
    assert len(calls) == 2 * 4 * 2


def test_loss_that_is_not_finite_still_names_the_layer(calls):
    engine = build()
    with torch.no_grad():
        engine.model.model.layers[1].moe.experts.down_proj.view(-1)[0] = math.nan
    with pytest.raises(NonFiniteError, match=r"layers\.1\.moe\.experts\.down_proj"):
        engine.accumulate(windows(0))


def test_what_cannot_be_compiled_is_one_line(monkeypatch):
    def broken(_forward, **_):
        def call(*_):
            raise compiled.TorchDynamoException("unsupported: a thing\nwith a long story")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(compiled, "require_compiler", lambda: None)
    engine = build()
    with pytest.raises(AvaError, match=r"^train\.compile = true: unsupported: a thing: use false$"):
        engine.accumulate(windows(0))


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """As if there were one, with a compiler and Python's headers."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compiler.sysconfig, "get_path", lambda _: str(tmp_path))
    (tmp_path / "Python.h").touch()
    (tmp_path / "gcc").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path


def test_machine_without_a_gpu_is_refused_before_the_work(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(TrainingEngine, "__init__", None)  # would be called if the training were built
    with pytest.raises(ConfigError, match=r"^train\.compile = true: there is no GPU, .*: use false, or a machine with"):
        run("model", train={"compile": True, "precision": "bf16"})


def test_missing_compiler_is_named_with_the_way_out(gpu, monkeypatch):
    compiler.require_compiler()
    monkeypatch.setenv("CC", str(gpu / "gone"))
    with pytest.raises(ConfigError, match=f"needs a C compiler, and there is no {re.escape(str(gpu / 'gone'))}: .*CC"):
        compiler.require_compiler()
    monkeypatch.delenv("CC")
    (gpu / "gcc").unlink()
    with pytest.raises(ConfigError, match=r"there is no gcc or clang: install one, name it in CC, or use false$"):
        compiler.require_compiler()


def test_missing_headers_of_python_are_named(gpu):
    (gpu / "Python.h").unlink()
    with pytest.raises(
        ConfigError, match=r"needs .*/Python\.h: install Python's headers \(python3-dev\), or use false"
    ):
        compiler.require_compiler()


def test_compiled_code_lies_where_nobody_else_can_write(monkeypatch, tmp_path):
    monkeypatch.delenv(compiler.CACHE)
    monkeypatch.setattr(compiler.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = compiler.private_cache()
    assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert compiler.private_cache() == folder
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match=r"others may write there, and what lies there is run: .*TORCHINDUCTOR_CACHE"):
        compiler.private_cache()
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="others may write there"):
        compiler.private_cache()


@pytest.fixture
def traced(monkeypatch):
    """Layers become graphs that run without Inductor."""
    for module in (compiled, preconditions):
        monkeypatch.setattr(module, "require_compiler", lambda: None)
    monkeypatch.setattr(torch, "compile", partial(rank_runs.traced, torch.compile))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_graphs_of_the_layers_give_the_gradients_of_the_layers(traced):
    """Also with a mask, and recomputed; in bfloat16, which rounds sums of another order differently."""
    batch = windows(0)
    documents = (torch.arange(batch.input_ids.shape[1]) > 6).long().expand_as(batch.input_ids)
    for ids, more in ((None, {}), (documents, {"gradient_checkpointing": True})):
        found = []
        for compile_ in (False, True):
            model = tiny(hidden_size=32, router="top_k", balance_loss_weight=0.5)
            engine = build_engine(
                model, settings(compile=compile_, precision="bf16", micro_batch_size=8, **more), Ranks()
            )
            figures = engine.accumulate(replace(batch, document_ids=ids))
            found.append((figures["train_loss"], engine.gradient_norm()))
        assert found[1] == pytest.approx(found[0], rel=0.02)


@pytest.mark.slow
def test_compiled_training_goes_on_with_the_same_bits(run, monkeypatch, traced):
    """With dropout and noise in the router, from another process, which compiles anew."""
    train = {"compile": True, "precision": "bf16", "steps": 3, "checkpoint_every": 1, "evaluate_every": 2}
    changes = {"model": {"dropout": 0.1, "router_jitter": 0.1}, "train": train}
    undisturbed, _ = run("undisturbed", **changes)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TrainingEngine, "update", killed_at(TrainingEngine.update, 3))
        run("killed", **changes)
    torch._dynamo.reset()
    resumed, _ = run("killed", **changes)
    first, second = weights(undisturbed), weights(resumed)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_two_ranks_train_alike_with_graphs_and_without_at_every_zero_stage_that_may(tmp_path):
    options = {"experts_implementation": "dense", "hidden_size": 32}
    cases = {
        f"{stage} {compile_}": {"zero_stage": stage, "compile": compile_, "options": dict(options)}
        for stage in range(3)
        for compile_ in (False, True)
    }
    first, second = on_ranks(2, tmp_path, cases)
    for stage in range(3):
        plain, graphs = first[f"{stage} False"], first[f"{stage} True"]
        assert graphs["losses"] == pytest.approx(plain["losses"], abs=1e-4)
        assert graphs["norms"] == pytest.approx(plain["norms"], rel=1e-3)
        assert all(value.equal(second[f"{stage} True"]["state"][name]) for name, value in graphs["state"].items())
