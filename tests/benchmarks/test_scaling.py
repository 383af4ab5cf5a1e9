"""The two layers whose growth is compared do the same work; what is drawn and told about it."""

import torch

from benchmarks import scaling
from benchmarks.workload import Workload

SMALL = Workload(hidden_size=32, heads=2, key_value_heads=2, head_dim=16, experts=4, expert_size=16)
TIMES = {
    "tokens": {"ours": {256: 1.0, 512: 2.0, 1024: 4.5}, "hf_olmoe": {256: 2.0, 512: 3.0, 1024: 7.0}},
    "experts": {"ours": {4: 3.0, 8: 3.3}, "hf_olmoe": {4: 5.0, 8: 9.0}},
    "failures": {},
}


def test_both_layers_compute_the_same():
    torch.manual_seed(0)
    ours, our_module = scaling.our_layer(SMALL)
    peer, peer_module = scaling.peer_layer(SMALL)
    for parameter in our_module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        peer_module.gate.weight.copy_(our_module.gate.weight)
        peer_module.experts.gate_up_proj.copy_(our_module.experts.gate_up_proj)
        peer_module.experts.down_proj.copy_(our_module.experts.down_proj)
    x = torch.randn(1, 24, SMALL.hidden_size)
    torch.testing.assert_close(ours(x), peer(x), atol=1e-5, rtol=1e-5)


def test_a_worker_times_any_number_of_experts(monkeypatch):
    monkeypatch.setattr(scaling, "prepare", lambda *_: None)
    layer = scaling.Layer(
        "ours", {"hidden_size": 32, "heads": 2, "key_value_heads": 2, "head_dim": 16, "expert_size": 16}, 1
    )
    for experts in (4, 8):
        assert layer.turn(tokens=16, experts=experts, repeats=1)["milliseconds"] > 0


def test_growth_is_from_the_smallest_to_the_largest_size():
    assert scaling.growth({8: 9.0, 4: 3.0}) == 3
    assert "x 4.50" in scaling.show(TIMES)


def test_drawing_has_the_same_bytes_each_time(tmp_path):
    for name in ("a.png", "b.png"):
        scaling.draw(TIMES, SMALL, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
