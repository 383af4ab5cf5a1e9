"""The average in closed form, and what putting it into a model does to the bits of the weights."""

import copy

import pytest
import torch
from torch import nn

from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.training.ema import Ema


def averaged(values, **fields):
    ema = Ema(**fields)
    for step, value in enumerate(values, start=1):
        ema.update(step, {"w": torch.tensor([value], dtype=torch.float64)})
    return ema


def test_average_is_the_closed_form_with_its_warm_up():
    values = [5.0, 1.0, -2.0, 4.0, 0.5]
    ema = averaged(values, decay=0.25)
    # After the copy: n = 1, 2, 3, 4 have (1 + n) / (10 + n) = 2/11, 3/12, 4/13, 5/14; 0.25 bounds the last two.
    expected = values[0]
    for value, d in zip(values[1:], [2 / 11, 0.25, 0.25, 0.25], strict=True):
        expected = d * expected + (1 - d) * value
    assert ema.average["w"].item() == pytest.approx(expected, rel=1e-12)


def test_decay_takes_over_after_the_warm_up():
    ema = averaged([1.0] * 100, decay=0.9)
    ema.update(101, {"w": torch.tensor([2.0], dtype=torch.float64)})
    assert ema.average["w"].item() == pytest.approx(1.1)


def test_average_of_constant_weights_is_exactly_them():
    weights = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0))}
    ema = Ema(0.99)
    for step in range(1, 30):
        ema.update(step, weights)
    assert torch.equal(ema.average["w"], weights["w"])


def test_only_every_nth_step_counts():
    ema = averaged([1.0, 2.0, 3.0, 4.0, 5.0], decay=0.5, every=2)
    assert ema.updates == 2
    assert ema.average["w"].item() == pytest.approx(2 * 2 / 11 + 4 * 9 / 11)


def test_weights_that_change_in_place_do_not_reach_into_the_average():
    weights = {"w": torch.ones(3)}
    ema = Ema(0.5)
    ema.update(1, weights)
    weights["w"].fill_(9.0)
    assert ema.average["w"].tolist() == [1.0, 1.0, 1.0]


def test_buffers_and_counts_have_their_latest_value():
    ema = Ema(0.5, latest=["bias"])
    for step in (1, 2):
        ema.update(step, {"bias": torch.tensor([step / 2]), "count": torch.tensor(step), "w": torch.tensor([step / 2])})
    assert ema.average["bias"].item() == 1.0 and ema.average["count"].item() == 2
    assert ema.average["w"].item() == pytest.approx(0.5 * 2 / 11 + 9 / 11)


def make_model(dtype=torch.bfloat16):
    torch.manual_seed(0)
    config = EnhancedMoEConfig(
        vocab_size=31, hidden_size=16, num_layers=2, num_attention_heads=2, num_ffn_experts=2,
        expert_intermediate_size=8, router="expert_bias", tie_word_embeddings=True,
    )  # fmt: skip
    model = EnhancedMoEForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def halved(model):
    """The average of a model's weights and as many zeros, its routers' bias 7."""
    ema = Ema(0.5, latest=[name for name, _ in model.named_buffers()])
    ema.update(1, {name: value.float() for name, value in model.state_dict().items()})
    for name, value in ema.average.items():
        value.fill_(7.0) if name in ema.latest else value.mul_(0.5 if name != "lm_head.weight" else 1.0)
    return ema


def test_swap_gives_the_rounded_average_and_then_every_bit_back():
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    addresses = {name: value.data_ptr() for name, value in model.state_dict().items()}
    ema = halved(model)
    with ema.swapped(model):
        for name, value in model.state_dict().items():
            if "expert_bias" in name:
                assert (value == 7).all()
            else:
                assert torch.equal(value, (before[name].float() / 2).to(value.dtype)), name
                assert value.dtype == torch.bfloat16
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) and value.data_ptr() == addresses[name]


def test_bits_come_back_after_an_error_too():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyError), halved(model).swapped(model):
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_an_update_the_model_stays_as_it_is():
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    with Ema(0.5).swapped(model):
        assert torch.equal(model.weight, before)


def test_tied_weights_have_one_average():
    tied = torch.ones(4)
    ema = Ema(0.5)
    ema.update(1, {"a": tied, "b": tied})
    tied.fill_(2.0)
    ema.update(2, {"a": tied, "b": tied})
    assert ema.average["a"] is ema.average["b"]
    assert ema.average["a"].tolist() == pytest.approx([2 / 11 + 2 * 9 / 11] * 4)


def test_restored_average_goes_on_exactly(tmp_path):
    steps = [{"w": torch.randn(9, generator=torch.Generator().manual_seed(i))} for i in range(30)]
    whole, first, second = Ema(0.8), Ema(0.8), Ema(0.8)
    for step, weights in enumerate(steps, start=1):
        whole.update(step, weights)
    for step in range(1, 13):
        first.update(step, steps[step - 1])
    torch.save(first.state_dict(), tmp_path / "ema.pt")
    second.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    for step in range(13, 31):
        second.update(step, steps[step - 1])
    assert torch.equal(second.average["w"], whole.average["w"]) and second.updates == 30


def _two_ranks(rank, address, results):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model, ema = make_model(), Ema(0.5)
    before = copy.deepcopy(model.state_dict())
    if rank == 0:
        ema = halved(model)
    with ema.swapped(model):
        torch.save({name: value.clone() for name, value in model.state_dict().items()}, f"{results}/{rank}")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_ranks_get_the_average_of_the_first(tmp_path):
    torch.multiprocessing.spawn(_two_ranks, (f"file://{tmp_path}/store", tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    fresh = make_model().state_dict()
    assert torch.equal(second["model.norm.weight"], fresh["model.norm.weight"] / 2)
