import logging

import torch

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM, RoutingStatistics
from ava_core.training.engine.balance import PATIENCE, BalanceMonitor

EVEN, SAME = torch.full((4,), 0.25), torch.tensor([1.0, 0, 0, 0])


def layer(load_E):
    zero = torch.zeros(())
    return RoutingStatistics(
        load_E=load_E, mean_probability_E=load_E, ffn_experts_per_token=zero, entropy=zero, dropped_share=zero
    )


def tiny(**overrides):
    torch.manual_seed(0)
    fields = {"num_ffn_experts": 4, "num_zero_experts": 0, "num_copy_experts": 0, "num_constant_experts": 0}
    return EnhancedMoEForCausalLM(
        EnhancedMoEConfig(
            vocab_size=64, hidden_size=32, num_layers=2, expert_intermediate_size=16, **fields, **overrides
        )
    )


def test_collapse_that_lasts_is_told_once_and_again_only_when_it_changes(caplog):
    monitor, model = BalanceMonitor(), tiny()
    caplog.set_level(logging.INFO)
    brief = [(SAME, EVEN), (EVEN, EVEN)] * PATIENCE
    first, both = [(EVEN, SAME)] * (PATIENCE + 5), [(SAME, SAME)] * (PATIENCE + 5)
    for loads in (*brief, *first, *both, (EVEN, EVEN), (EVEN, EVEN)):
        monitor.add([layer(load_E) for load_E in loads])
        monitor.judge()
        monitor.finish_step(model)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "routing has collapsed in layers 1 (from 0)",
        "routing has collapsed in layers 0, 1 (from 0)",
        "routing is collapsed in no layer any more",
    ]


def test_collapse_is_judged_by_the_mean_of_the_micro_batches_of_one_step():
    monitor, model = BalanceMonitor(), tiny()
    for expert in range(4):  # each micro-batch uses one expert, all of them together use every expert
        monitor.add([layer(SAME.roll(expert)), layer(SAME)])
    assert monitor.judge() == {"collapsed_layers": 1.0}
    monitor.finish_step(model)
    monitor.add([layer(EVEN), layer(EVEN)])  # nothing of the step before is left
    assert monitor.judge() == {"collapsed_layers": 0.0}


def test_bias_follows_the_mean_load_of_the_micro_batches():
    model = tiny(router="expert_bias", expert_bias_update_rate=0.5)
    monitor = BalanceMonitor()
    monitor.add([layer(torch.tensor([1.0, 0, 0, 0])), layer(EVEN)])
    monitor.add([layer(torch.tensor([0.0, 0.5, 0.25, 0.25])), layer(EVEN)])
    monitor.judge()
    monitor.finish_step(model)
    first, second = (block.moe.router.expert_bias.tolist() for block in model.model.layers)
    assert first == [-0.5, 0.0, 0.5, 0.5]  # mean loads 0.5, 0.25, 0.125, 0.125 against 0.25
    assert second == [0.0] * 4
