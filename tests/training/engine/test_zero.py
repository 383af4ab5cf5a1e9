"""Training in partitions and on several ranks gives the curve of one process that keeps everything.

Each rank passes the same micro-batches, so only the order of sums differs. Tolerances: 1e-5 nats in float32 (seen:
1e-6); Muon orthogonalises in bfloat16, whose rounding a last bit can tip, so 2e-4 (seen: 3e-5); 3e-3 with weights in
bfloat16 (seen: 6e-4).
"""

import math

import pytest
import torch
import yaml

from ava_core.config import presets, resolve
from ava_core.distributed.ranks import Ranks
from ava_core.training.engine.zero_muon import Piece
from tests.training.engine.rank_runs import build_engine, on_ranks, settings, tiny, train, windows

STAGES = (0, 1, 2, 3)
ROUNDED_MUON = {"optimizer": "muon", "precision": "bf16"}


def tolerance(fields: dict) -> float:
    if fields.get("precision") == "bf16":
        return 3e-3
    return 2e-4 if fields.get("optimizer") == "muon" else 1e-5


def assert_same_curve(result: dict, reference: dict, fields: dict) -> None:
    bound = tolerance(fields)
    for name in ("losses", "validation"):
        assert result[name] == pytest.approx(reference[name], abs=bound)
    assert result["norms"] == pytest.approx(reference["norms"], rel=10 * bound)
    assert result["state"].keys() == reference["state"].keys()
    for name, value in result["state"].items():
        assert value.dtype == torch.float32
        # The optimiser's step hardly depends on the size of a gradient, so a small one's last bits move the weight.
        difference = (value - reference["state"][name]).abs()
        # In bfloat16 rounding moves a token to another expert, whose gate is moved by it; on CPUs with AMX by 0.0201.
        largest = 0.03 if fields.get("precision") == "bf16" else 0.02
        assert difference.mean() <= 5 * bound and difference.max() <= largest, name
    assert reference["losses"][-1] < reference["losses"][0] - 0.05  # it learns: a flat curve would prove nothing


@pytest.fixture(scope="module")
def reference():
    """One process, stage 0; computed once for each configuration."""
    known: dict[str, dict] = {}

    def of(**fields) -> dict:
        key = repr(sorted(fields.items()))
        if key not in known:
            known[key] = train(settings(**fields), Ranks())
        return known[key]

    return of


@pytest.mark.parametrize(
    "fields",
    [pytest.param({}, id="adamw", marks=pytest.mark.slow), pytest.param(ROUNDED_MUON, id="muon")],
)
@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_in_one_process_gives_the_curve_of_stage_0(reference, stage, fields):
    result = train(settings(zero_stage=stage, **fields), Ranks())
    assert_same_curve(result, reference(**fields), fields)


@pytest.mark.slow
@pytest.mark.parametrize("offload", [{"zero_stage": 2, "offload": "optimizer"}, {"zero_stage": 3, "offload": "all"}])
def test_offloading_changes_no_number(reference, offload):
    assert_same_curve(train(settings(**offload), Ranks()), reference(), {})


@pytest.mark.slow
def test_two_ranks_under_zero_3_give_the_curve_of_one_process(reference, tmp_path):
    fields = {"optimizer": "muon"}
    first, second = on_ranks(2, tmp_path, {"case": {"zero_stage": 3, **fields}})
    assert_same_curve(first["case"], reference(**fields), fields)
    assert_same_curve(second["case"], reference(**fields), fields)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_stage_optimiser_and_precision_gives_the_curve_of_one_process(reference, tmp_path, ranks):
    kinds = {
        "adamw": {},
        "muon": {"optimizer": "muon"},
        "lion": {"optimizer": "lion", "learning_rate": 0.003},
        "rounded": ROUNDED_MUON,
    }
    cases = {f"{kind} {stage}": {**fields, "zero_stage": stage} for kind, fields in kinds.items() for stage in STAGES}
    cases["adafactor 0"] = kinds["adafactor"] = {"optimizer": "adafactor", "learning_rate": 0.1}
    cases["recomputing 3"] = {"gradient_checkpointing": True, "zero_stage": 3}
    kinds["recomputing"] = {}
    cases["sophia 0"] = kinds["sophia"] = {"optimizer": "sophia", "learning_rate": 0.003}
    cases["surgery 0"] = kinds["surgery"] = {"gradient_surgery": True}
    results = on_ranks(ranks, tmp_path, cases)
    for name in cases:
        fields = kinds[name.split()[0]]
        if "sophia" not in name:  # each rank draws labels of its own
            assert_same_curve(results[0][name], reference(**fields), fields)
        for other in results[1:]:
            assert other[name]["losses"] == results[0][name]["losses"]
            state = results[0][name]["state"]
            assert all(torch.equal(value, state[key]) for key, value in other[name]["state"].items())
            biases = [value for key, value in state.items() if "expert_bias" in key]
            assert biases and all(value.any() for value in biases)


@pytest.mark.parametrize("stage", STAGES)
def test_exact_state_has_the_masters_of_rounded_weights(stage):
    state = train(settings(zero_stage=stage, precision="bf16", learning_rate=1e-6), Ranks(), steps=1)["state"]
    for name, fresh in tiny().named_parameters():
        # The masters begin as the rounded weights, and AdamW's first step is the learning rate.
        moved = (state[name] - fresh.detach().bfloat16().float()).abs()
        assert 0 < moved.max() < 1.1e-6, name
    assert state["lm_head.weight"].equal(state["model.embed_tokens.weight"])


@pytest.mark.parametrize("share", [None, 4])
def test_a_piece_reads_what_it_wrote(share):
    matrix = torch.arange(6.0).view(2, 3)
    partitions = torch.full((2, 8), -1.0)
    piece = Piece(matrix.shape, start=3, share=share)
    piece.write(partitions, matrix)
    assert torch.equal(piece.of(partitions), matrix)
    if share is None:  # cut where the first partition ends
        assert partitions[0, 3:].tolist() == [0, 1, 2, 3, 4] and partitions[1, :2].tolist() == [5, -1]
        assert piece.touches(0, 8) and piece.touches(1, 8) and not piece.touches(2, 8)
    else:  # a share for each, the last one padded
        assert partitions[:, 3:7].tolist() == [[0, 1, 2, 3], [4, 5, 0, 0]]


def test_limit_on_the_norm_is_applied_to_partitions():
    loose, tight = (train(settings(zero_stage=2), Ranks(), steps=1, limit=limit) for limit in (math.inf, 1e-9))
    assert loose["norms"] == tight["norms"]
    # AdamW's step doesn't depend on the scale of the gradient until it comes near eps, 1e-8.
    name = "model.layers.0.self_attn.q_proj.weight"
    start = train(settings(learning_rate=1e-12), Ranks(), steps=1)["state"][name]
    moved = [(result["state"][name] - start).abs().mean() for result in (loose, tight)]
    assert moved[1] < 0.1 * moved[0]


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", STAGES[1:])
def test_gradient_that_is_not_finite_is_left_out(stage, precision):
    engine = build_engine(tiny(), settings(zero_stage=stage, precision=precision), Ranks())
    plain = build_engine(tiny(), settings(zero_stage=stage, precision=precision), Ranks())
    before = {name: value.clone() for name, value in engine.exact_state_dict().items()}
    hook = engine.model.model.norm.weight.register_hook(lambda grad: grad * math.inf)
    engine.accumulate(windows(7))
    hook.remove()
    assert engine.update(1.0) == math.inf
    assert all(torch.equal(before[name], value) for name, value in engine.exact_state_dict().items())
    assert engine.accumulate(windows(0)) == plain.accumulate(windows(0))
    assert engine.update(1.0) == plain.update(1.0)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_overlay_sets_the_stage_over_any_preset_and_is_no_preset(stage):
    overlay = presets.FOLDER / "distributed" / f"zero{stage}.yaml"
    settings = {"zero_stage": stage, "expert_update_interval": 1}
    assert yaml.safe_load(overlay.read_text()) == {"train": settings}
    assert not any("distributed" in name for name in presets.names())
    for preset in presets.names():
        plain = resolve(overrides=[f"preset={preset}"]).config
        both = resolve(config_files=[overlay], overrides=[f"preset={preset}"]).config
        assert both.train == plain.train.model_copy(update=settings)
