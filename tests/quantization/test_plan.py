"""Formats by group: what a group may be stored in, and which one it gets."""

import pytest

from ava_core.config.quantize import QuantizeConfig, SchemeConfig
from ava_core.errors import ConfigError
from ava_core.quantization.plan import Damage, Format, Group, Targets, choose, formats, groups_of
from ava_core.quantization.rounding import unmeasured
from ava_core.steps.schemes import HALF, SCHEMES

FOUR, EIGHT, FLOAT16 = Format(bits=4, block_size=32), Format(bits=8, block_size=32), Format(bits=HALF)
NO_LIMIT = 1.0


def group(name: str, weights: int = 1024, widths: tuple[int, ...] = (64,), experts: bool = True) -> Group:
    return Group(name=name, matrices=(name,), weights=weights, widths=widths, experts=experts)


def chosen_bits(
    harm: dict[str, float], weights: dict[str, int], size: float = NO_LIMIT, divergence: float = 0.1
) -> dict[str, int]:
    """Bits that groups get whose 4 bits do this harm and whose 8 bits do none."""
    options = {group(name, weights[name]): [FOUR, EIGHT] for name in harm}
    damages = {(name, FOUR): Damage(divergence=nats, routing=0.0) for name, nats in harm.items()}
    damages |= {(name, EIGHT): Damage(divergence=0.0, routing=0.0) for name in harm}
    targets = Targets(divergence=divergence, routing=0.04, size=size)
    found = choose(options, damages, targets, other_bytes=0, float_bytes=4 * sum(weights.values()))
    return {name: form.bits for name, form in found.items()}


def test_projections_that_are_one_product_share_a_group_and_so_do_a_layers_experts(make_model):
    groups = {found.name: found for found in groups_of(make_model(tie_word_embeddings=False))}
    attention = groups["model.layers.1.self_attn"]
    assert [name.rsplit(".", 2)[1] for name in attention.matrices] == ["q_proj", "k_proj", "v_proj"]
    experts = [found for found in groups.values() if found.experts]
    assert [len(found.matrices) for found in experts] == [2, 2, 2]
    assert {"lm_head.weight", "model.layers.1.self_attn.o_proj.weight"} <= groups.keys()


def test_a_tied_head_is_rounded_once_as_the_embedding(make_model):
    names = [name for found in groups_of(make_model(tie_word_embeddings=True)) for name in found.matrices]
    assert "lm_head.weight" not in names
    assert "model.embed_tokens.weight" in names
    assert len(names) == len(set(names))


def test_neither_routers_nor_norms_nor_constant_experts_are_in_a_group(make_model):
    names = [name for found in groups_of(make_model(num_constant_experts=1)) for name in found.matrices]
    assert names
    assert not [name for name in names if "router" in name or "norm" in name or "constant" in name]


def test_the_most_harmful_group_is_widened_first():
    weights = {"a": 1024, "b": 1024, "c": 1024}
    assert chosen_bits({"a": 0.01, "b": 0.20, "c": 0.02}, weights) == {"a": 4, "b": 8, "c": 4}


def test_of_two_equally_harmful_groups_the_smaller_one_is_widened():
    assert chosen_bits({"large": 0.04, "little": 0.04}, {"large": 4096, "little": 1024}) == {"large": 4, "little": 8}


def test_nothing_is_widened_when_the_targets_are_within_reach():
    assert chosen_bits({"a": 0.02, "b": 0.02}, {"a": 1024, "b": 1024}) == {"a": 4, "b": 4}


def test_widening_stays_within_the_size():
    weights = {"a": 1024, "b": 1024, "c": 1024}
    harm = {"a": 1.0, "b": 2.0, "c": 3.0}
    # 4.5 bits everywhere is 0.141 of float32, and each group at 8.5 adds 0.042.
    assert chosen_bits(harm, weights, size=0.15) == {"a": 4, "b": 4, "c": 4}
    assert chosen_bits(harm, weights, size=0.19) == {"a": 4, "b": 4, "c": 8}
    assert chosen_bits(harm, weights, size=0.23) == {"a": 4, "b": 8, "c": 8}


def test_a_group_too_large_for_the_room_leaves_it_to_a_smaller_one():
    assert chosen_bits({"large": 9.0, "little": 0.5}, {"large": 9216, "little": 1024}, size=0.16) == {
        "large": 4,
        "little": 8,
    }


def test_experts_that_change_the_routing_are_widened_though_the_text_is_as_likely():
    options = {group(name): [FOUR, EIGHT] for name in ("quiet", "routing")}
    none = Damage(divergence=0.0, routing=0.0)
    damages = {(name, form): none for name in ("quiet", "routing") for form in (FOUR, EIGHT)}
    damages["routing", FOUR] = Damage(divergence=0.0, routing=0.05)
    found = choose(options, damages, Targets(divergence=0.1, routing=0.04, size=1.0), 0, 8192)
    assert found == {"quiet": FOUR, "routing": EIGHT}


def test_int4_keeps_eight_bits_for_all_but_experts():
    assert formats(group("experts"), "int4", None) == [FOUR, EIGHT]
    assert formats(group("attention", experts=False), "int4", None) == [EIGHT]
    assert formats(group("attention", experts=False), "int8", None) == [EIGHT, FLOAT16]


def test_rows_that_thirty_two_does_not_divide_get_blocks_of_sixteen():
    assert {form.block_size for form in formats(group("experts", widths=(48, 64)), "int4", None)} == {16}


def test_a_block_that_does_not_divide_a_row_is_refused_with_the_sizes_that_fit():
    with pytest.raises(ConfigError, match=r"block_size = 128: doesn't divide the 96 and 192 .* one of 16, 32$"):
        formats(group("experts", widths=(96, 192)), "int4", 128)
    assert formats(group("experts", widths=(96, 192)), "int4", 128, portable=True)[0].block_size == 128


def test_rows_that_no_block_divides_are_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"no block size divides its 40 inputs: set quantize\.portable = true"):
        formats(group("experts", widths=(40,)), "int8", None)


def test_unmeasured_schemes_are_what_they_are_called_after(make_model):
    for scheme, experts in (("int8", 8), ("int4", 4)):
        for group in groups_of(make_model()):
            form = unmeasured(scheme, formats(group, scheme, None))
            assert form.bits == (experts if group.experts else 8)


def test_every_scheme_that_rounds_has_its_aims_and_bounds_in_the_configuration():
    sections = {name for name, field in QuantizeConfig.model_fields.items() if isinstance(field.default, SchemeConfig)}
    assert sections == {name for name, scheme in SCHEMES.items() if scheme.rounds}
