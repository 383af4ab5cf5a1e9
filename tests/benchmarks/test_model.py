"""The comparison from end to end in small, and that what it compares is comparable."""

import json

import pytest
import torch

from ava_core.models import EnhancedMoEForCausalLM
from benchmarks import hardware, model
from benchmarks.subjects import OURS, PEERS, build_ours, build_peer, parse
from benchmarks.workload import Workload, from_preset

TINY = Workload(
    label="tiny",
    batch=2,
    length=32,
    vocab_size=128,
    hidden_size=64,
    layers=2,
    heads=2,
    key_value_heads=2,
    head_dim=32,
    experts=4,
    expert_size=32,
)


def build(name: str):
    base, settings = parse(name)
    torch.manual_seed(0)
    return (build_ours if base in OURS else build_peer)(base, settings, TINY)


def matrices(name: str) -> int:
    """Parameters of matrices; norms and gating residuals are few, and no two models have the same."""
    model = build(name).model
    return sum(
        parameter.numel()
        for key, parameter in model.named_parameters()
        if parameter.ndim > 1 and not key.endswith("residual_weight")
    )


@pytest.mark.parametrize("name", [*OURS, *PEERS])
def test_every_subject_trains(name):
    step = build(name)
    tokens = torch.randint(TINY.vocab_size, (TINY.batch, TINY.length))
    losses = []
    for _ in range(6):
        with step.context():
            loss = step.forward(tokens).loss
        loss.backward()
        step.optimizer.step()
        step.optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_subjects_have_the_same_matrices():
    mixture = matrices("ours_vanilla")
    assert {name: matrices(name) for name in PEERS if name != "hf_llama_bf16"} == {
        name: mixture for name in PEERS if name != "hf_llama_bf16"
    }
    assert matrices("ours_dense") == matrices("hf_llama_bf16")
    zero_computation = TINY.zero_computation_experts + 3 * TINY.constant_experts
    assert matrices("ours_moepp") - mixture == TINY.layers * TINY.hidden_size * zero_computation


def test_dense_network_routes_nothing():
    step = build("ours_dense")
    assert isinstance(step.model, EnhancedMoEForCausalLM)
    assert not any("gate.weight" in name or "experts" in name for name, _ in step.model.named_parameters())


def test_unknown_subject_and_setting_are_refused_by_name():
    with pytest.raises(ValueError, match="hf_bert"):
        parse("hf_bert")
    with pytest.raises(ValueError, match="setting fast"):
        parse("hf_olmoe_bf16+fast")


def test_batched_experts_are_left_out_where_their_copies_dont_fit():
    assert "hf_olmoe_bf16+batched_mm+kept" in model.subjects(TINY, "both", all_peers=True)
    assert not any("batched_mm" in name for name in model.subjects(Workload(), "both", all_peers=True))


def test_on_a_gpu_both_sides_are_compiled():
    names = model.subjects(from_preset("gpu/base", "cuda"), "both", all_peers=False)
    assert {"ours_vanilla+compiled", "hf_olmoe_bf16", "hf_olmoe_bf16+compiled"} <= set(names)
    assert not any("kept" in name for name in names)


def test_gpu_presets_are_measured_on_2048_tokens():
    work = from_preset("gpu/base", "cuda")
    assert (work.length, work.tokens, work.heads, work.key_value_heads) == (2048, 8 * 1024, 16, 4)


def test_slug_names_the_hardware_and_nothing_else():
    described = {"processor": "Maker(R) X9 @ 2.0GHz", "flags": ["amx_bf16", "avx2"], "threads": 2}
    assert hardware.slug(described) == "maker-r-x9-2-0ghz-amx-bf16-2-threads"
    assert hardware.slug({**described, "gpu": "GPU 80GB"}) == "gpu-80gb"


@pytest.mark.slow
def test_comparison_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model, "Workload", lambda **_: TINY)
    names = "ours_moepp,ours_vanilla"
    flags = ["--subjects", names, "--rounds", "2", "--warmup", "1", "--steps", "1", "--threads", "1"]
    assert model.main([*flags, "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "ours_moepp / ours_vanilla" in printed
    (path,) = tmp_path.iterdir()
    kept = json.loads(path.read_text())["training step, tiny"]
    (ratio,) = kept["ratios"]
    quotients = [
        above / below
        for above, below in zip(
            *(kept["subjects"][name]["tokens_per_second"] for name in names.split(",")), strict=True
        )
    ]
    assert ratio["median"] == pytest.approx(sum(quotients) / 2)
    moepp, vanilla = kept["subjects"]["ours_moepp"], kept["subjects"]["ours_vanilla"]
    assert 0 < moepp["ffn_experts_per_token"] < vanilla["ffn_experts_per_token"] == 2
    assert 0 < vanilla["peak_bytes_over_start"] < vanilla["peak_bytes"]
    assert vanilla["share_of_best_peak"] <= vanilla["share_of_mean_peak"]
    assert vanilla["share_of_mean_peak_causal"] < vanilla["share_of_mean_peak"]
    assert str(tmp_path) not in path.read_text()
