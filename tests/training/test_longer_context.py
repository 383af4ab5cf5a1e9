"""A model that goes on with a longer context: trained, quantised and measured past what its parent read."""

import json

import pytest

from ava_core.config.evaluate import EvaluateConfig
from ava_core.config.quantize import QuantizeConfig
from ava_core.evaluation.evaluate import evaluate
from ava_core.generation.loading import load_model
from ava_core.progress import Progress
from ava_core.quantization.quantize import quantize
from ava_core.runtime import manifest
from tests.registry.conftest import finished
from tests.training.whole_runs import rows, weights

SCALED = {"original_max_position_embeddings": 64}
LOOSE = {"min_expert_agreement": 0.2, "min_top1_agreement": 0.2, "max_increase_percent": 90.0}


def begun(run, tiny_model, kind, **model):
    section = {"rope_scaling": {"type": kind, **SCALED}, "max_position_embeddings": 128, **model}
    output, _ = run(kind, init=tiny_model, model=section, train={"steps": 4, "sequence_length": 128})
    return finished(output, "train", {})


@pytest.mark.parametrize(
    "kind", ["yarn", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("linear", "dynamic"))]
)
def test_training_goes_on_with_scaled_positions(run, tiny_model, kind):
    output = begun(run, tiny_model, kind)
    rope = json.loads((output / "config.json").read_text())["rope_parameters"]
    assert rope == {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, **SCALED}
    assert rows(output)[0]["train_loss"] < 5.0 and rows(output)[-1]["validation_loss"] < 5.0
    assert weights(output).keys() == weights(tiny_model).keys()
    grandchild, _ = run("grandchild", init=output, train={"steps": 2})
    assert json.loads((grandchild / "config.json").read_text())["rope_parameters"] == rope


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "model", "portable"),
    [
        ("yarn", {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention"]}, False),
        ("dynamic", {"sliding_window": 40}, True),
    ],
    ids=["fused", "portable"],
)
def test_everything_downstream_takes_it(run, tiny_model, tiny_shards, tmp_path, kind, model, portable):
    trained = begun(run, tiny_model, kind, **model)
    common = {"model": trained, "shards": tiny_shards, "threads": 1, "progress": Progress(quiet=True)}
    folders = [tmp_path / name for name in ("int8", "int8.state", "evaluation", "evaluation.state")]
    for folder in folders:
        folder.mkdir()
    config = QuantizeConfig(parity_sequences=2, portable=portable, int8=LOOSE)
    figures = quantize(config=config, scheme="int8", output=folders[0], state=folders[1], **common).metrics
    assert figures["parity_export_mean_abs_error"] < 1e-4 and figures["parity_cached_mean_abs_error"] < 1e-3
    (folders[0] / "metrics.json").write_text(json.dumps(figures))
    finished(folders[0], "quantize", {"model": manifest.read(trained).digest}, {"scheme": "int8"})
    settings = EvaluateConfig(prompts=["To be"], context=128, generation={"max_new_tokens": 90, "num_beams": 2})
    scored = evaluate(config=settings, seed=1, quantized=folders[:1], output=folders[2], state=folders[3], **common)
    ours, theirs = scored.metrics["context_loss_from_64"], scored.metrics["int8_context_loss_from_64"]
    assert theirs == pytest.approx(ours, rel=0.02)
    loaded, tokenizer = load_model(folders[0])
    ids = tokenizer("To be, or not to be", return_tensors="pt").input_ids
    assert loaded.generate(ids, max_new_tokens=100, do_sample=False, pad_token_id=0).shape[1] > 64
