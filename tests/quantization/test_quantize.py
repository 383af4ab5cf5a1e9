import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from ava_core.config.quantize import QuantizeConfig
from ava_core.data.shards import ShardedSplit
from ava_core.errors import AvaError, ConfigError, IntegrityError, ParityError
from ava_core.models import EnhancedMoEForCausalLM
from ava_core.onnx.runtime import load_onnx
from ava_core.progress import Progress
from ava_core.quantization.parity import measure_parity
from ava_core.quantization.quantize import quantize
from ava_core.steps.table import STEPS


@pytest.fixture
def run(tmp_path, tiny_model, tiny_shards):
    """Quantise `tiny_model` into tmp_path/NAME, with state in tmp_path/NAME.state."""

    def run(name: str = "out", scheme: str = "int8", model=tiny_model, shards=tiny_shards, **settings):
        output, state = tmp_path / name, tmp_path / f"{name}.state"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        state.mkdir(exist_ok=True)
        config = QuantizeConfig(**{"parity_sequences": 3, "int8": {"min_expert_agreement": 0.9}, **settings})
        progress = Progress(quiet=True)
        return quantize(
            config=config,
            scheme=scheme,
            model=model,
            shards=shards,
            output=output,
            state=state,
            threads=1,
            progress=progress,
        )

    return run


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def short_decoding(monkeypatch):
    monkeypatch.setattr("ava_core.quantization.decoding.NEW_TOKENS", 6)
    monkeypatch.setattr("ava_core.quantization.decoding.REPEATS", 1)


@pytest.mark.parametrize(("scheme", "ratio"), [("int8", 0.30), ("int4", 0.24), ("fp32", 1.04)])
def test_the_step_leaves_a_model_that_runs_and_its_figures(run, tmp_path, tiny_model, tiny_shards, scheme, ratio):
    result = run(scheme=scheme)
    spec, output = STEPS["quantize"], tmp_path / "out"
    assert set(spec.metrics) <= set(result.metrics)
    assert set(spec.timings) - {"wall_seconds"} <= set(result.timings)
    assert result.timings["decode_tokens_per_second"] > 0

    runtime = {name: data for name, data in contents(output).items() if name != "quantization.json"}
    assert result.metrics["model_bytes"] == sum(map(len, runtime.values()))
    floats = 4 * sum(p.numel() for p in EnhancedMoEForCausalLM.from_pretrained(tiny_model).parameters())
    weights = len(runtime["model.onnx.data"]) / floats
    assert weights < ratio
    graph = len(runtime["model.onnx"]) / floats
    assert result.metrics["compression_ratio"] == pytest.approx(1 / (weights + graph))

    record = json.loads((output / "quantization.json").read_text())
    assert (record["scheme"], record["graph"]) == (scheme, "fused")
    assert record["parity"]["max_abs_error"] == result.metrics["parity_max_abs_error"] > 0
    original = EnhancedMoEForCausalLM.from_pretrained(tiny_model).eval()
    split = ShardedSplit.open(tiny_shards, "validation")
    again = measure_parity(original, load_onnx(output, 1), split, sequence_length=64, sequences=3)
    assert again.expert_agreement == result.metrics["parity_expert_agreement"]
    assert again.bits_per_byte_increase == result.metrics["parity_bits_per_byte_increase"]

    tokenizer, model = AutoTokenizer.from_pretrained(output), load_onnx(output, 1)
    assert len(tokenizer("To be " * 300, truncation=True)["input_ids"]) == original.config.max_position_embeddings
    prompt = tokenizer("To be, or", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=5, do_sample=False)[0])
    assert text.startswith("To be, or")


def test_two_runs_give_the_same_bytes_and_figures(run, tmp_path):
    one, other = run("one"), run("other")
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    assert one.metrics == other.metrics


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["plan", "export_onnx", "load_onnx", "measure_parity", "decode_rates"])
def test_a_run_that_was_interrupted_goes_on_and_ends_with_the_same_bytes(run, tmp_path, monkeypatch, stage):
    undisturbed = run("undisturbed")
    module = "ava_core.quantization.quantize"
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{stage}", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run()
    with monkeypatch.context() as patch:
        if stage != "plan":
            patch.setattr(f"{module}.plan", lambda *args: pytest.fail("finished work was done again"))
        resumed = run()
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert resumed.metrics == undisturbed.metrics


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_portable_models_and_zero_points_are_options(run, tmp_path, scheme):
    portable = run("portable", scheme, portable=True)
    skewed = run("skewed", scheme, symmetric=False)
    for result in (portable, skewed):
        assert abs(result.metrics["parity_increase_percent"]) < 2
    graphs = [
        json.loads((tmp_path / name / "quantization.json").read_text())["graph"] for name in ("portable", "skewed")
    ]
    assert graphs == ["portable", "fused"]
    # onnxruntime-genai doesn't feed what the fused graph asks for.
    assert [(tmp_path / name / "genai_config.json").exists() for name in ("portable", "skewed")] == [True, False]


def test_a_block_that_does_not_divide_a_row_is_refused_with_those_that_do(run):
    with pytest.raises(ConfigError, match=r"quantize.block_size = 256: doesn't divide the .* must be one of 16, 32"):
        run(block_size=256)


def test_a_bound_that_is_broken_fails_the_step_and_leaves_no_record(run, tmp_path):
    bounds = QuantizeConfig().int4.model_copy(update={"min_expert_agreement": 1.0})
    with pytest.raises(ParityError, match=r"int4: parity_expert_agreement = .*: must be >= 1 .quantize.int4.min_ex"):
        run(scheme="int4", int4=bounds)
    assert not (tmp_path / "out" / "quantization.json").exists()


@pytest.fixture
def damaged(tmp_path, tiny_model):
    """A copy of the model to damage; without its manifest, so that what the step itself says is seen."""
    return shutil.copytree(tiny_model, tmp_path / "damaged", ignore=shutil.ignore_patterns("manifest.json"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "training.json"])
def test_a_missing_file_of_the_model_is_named(run, damaged, name):
    (damaged / name).unlink()
    with pytest.raises(AvaError, match=rf"damaged/{name}: no such file: give a model folder, as `ava train` or"):
        run(model=damaged)


def test_truncated_weights_are_refused_in_one_line(run, damaged):
    path = damaged / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5_000])
    with pytest.raises(IntegrityError, match="the model can't be loaded") as caught:
        run(model=damaged)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"num_shared_experts": 1}, {"gating_residuals": False}, {"hidden_size": 64}])
def test_weights_that_do_not_fit_the_configuration_are_refused(run, damaged, change):
    path = damaged / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(IntegrityError, match="restore the folder or make it anew") as caught:
        run(model=damaged)
    assert "\n" not in str(caught.value)


def test_shards_of_another_tokenizer_are_refused(run, tmp_path, tiny_shards):
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    path = shards / "splits.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 512}))
    with pytest.raises(AvaError, match=r"are of 512 entries, the model in .* has 384"):
        run(shards=shards)


def test_weights_in_bfloat16_are_quantised_from_their_float32_values(run, tmp_path, tiny_model):
    half = shutil.copytree(tiny_model, tmp_path / "half", ignore=shutil.ignore_patterns("manifest.json"))
    EnhancedMoEForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(half)
    result = run(model=half)
    assert result.metrics["parity_export_max_abs_error"] < 1e-3
    assert result.metrics["compression_ratio"] > 1
