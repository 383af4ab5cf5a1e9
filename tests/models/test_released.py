"""The released MoE++ layer against a transcription of its equations, token by token in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.released import ReleasedMoEPlusPlusLayer, ReleasedOptions

D, F, E = 6, 5, 7
NAMES = {"constant": 3, "copy": 5, "zero": 6}  # of E = 7: FFN 0-2, constant 3-4, copy 5, zero 6

OPTIONS = [
    pytest.param(ReleasedOptions(), id="defaults"),
    pytest.param(ReleasedOptions(two_layer_gate=False), id="one-layer-gate"),
    pytest.param(ReleasedOptions(softmax_after_selection=True), id="softmax-after-selection"),
    pytest.param(ReleasedOptions(gate_norm_std=0.7), id="normalised-logits"),
    pytest.param(ReleasedOptions(gate_norm_std=1.5, softmax_after_selection=True), id="both"),
    pytest.param(ReleasedOptions(double_input=False), id="input-not-doubled"),
]


def released_weights(options, seed=0):
    """Random weights under the names of the release."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    state = {"moe.gate.gate_map.weight": draw(E, E) * 0.5}
    if options.two_layer_gate:
        state |= {"moe.gate.wg.0.weight": draw(8 * E, D) * 0.5, "moe.gate.wg.2.weight": draw(E, 8 * E) * 0.3}
    else:
        state["moe.gate.wg.weight"] = draw(E, D)
    for i in range(E - 4):
        state[f"moe.experts.experts.{i}.up_proj.weight"] = draw(2 * F, D) * 0.5
        state[f"moe.experts.experts.{i}.down_proj.weight"] = draw(D, F)
    for i in (E - 4, E - 3):
        state[f"moe.experts.experts.{i}.constant"] = draw(D)
        state[f"moe.experts.experts.{i}.wg.weight"] = draw(2, D) * 0.5
    return state


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def times(matrix, x):
    return [dot(row, x) for row in matrix]


def softmax(values):
    exponentials = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def released_token(x, previous, state, options):
    """One token through the released layer: its output, its logits and the two experts that it chose."""
    w = {name.removeprefix("moe."): value.double().tolist() for name, value in state.items()}
    if options.two_layer_gate:
        logits = times(w["gate.wg.2.weight"], [math.tanh(h) for h in times(w["gate.wg.0.weight"], x)])
    else:
        logits = times(w["gate.wg.weight"], x)
    if previous is not None:
        logits = [a + b for a, b in zip(logits, times(w["gate.gate_map.weight"], previous), strict=True)]

    scores = logits
    if options.gate_norm_std is not None:
        mean = sum(logits) / E
        std = math.sqrt(sum((v - mean) ** 2 for v in logits) / (E - 1))
        scores = [v / (std / options.gate_norm_std) for v in logits]
    chosen = sorted(range(E), key=lambda i: -scores[i])[:2]
    if options.softmax_after_selection:
        gates = softmax([scores[i] for i in chosen])
    else:
        probabilities = softmax(scores)
        gates = [0.0 if i == E - 1 else probabilities[i] for i in chosen]
        gates = [g / sum(gates) for g in gates]
    doubled = options.double_input and not options.softmax_after_selection
    seen = [2 * v for v in x] if doubled else x

    output = [0.0] * D
    for i, gate in zip(chosen, gates, strict=True):
        if i < E - 4:
            both = times(w[f"experts.experts.{i}.up_proj.weight"], seen)
            hidden = [a / (1 + math.exp(-a)) * b for a, b in zip(both[:F], both[F:], strict=True)]
            result = times(w[f"experts.experts.{i}.down_proj.weight"], hidden)
        elif i < E - 2:
            a1, a2 = softmax(times(w[f"experts.experts.{i}.wg.weight"], seen))
            constant = w[f"experts.experts.{i}.constant"]
            result = [a1 * s + a2 * v for s, v in zip(seen, constant, strict=True)]
        elif i == E - 2:
            result = seen
        else:
            result = [0.0] * D
        output = [o + gate * r for o, r in zip(output, result, strict=True)]
    return output, logits, chosen


def make_layer(options, state):
    layer = ReleasedMoEPlusPlusLayer(D, F, E, options)
    layer.load_released(state)
    return layer


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("training", [False, True])  # the release makes no difference
def test_two_layers_are_what_the_released_equations_say(options, training):
    states = [released_weights(options, seed) for seed in (0, 1)]
    layers = [make_layer(options, state).train(training) for state in states]
    x = torch.randn(2, 40, D, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        first, logits = layers[0](x)
        second, last_logits = layers[1](first, logits)
    met = set()
    for t in range(80):
        expected, expected_logits, chosen = released_token(x.view(-1, D)[t].tolist(), None, states[0], options)
        torch.testing.assert_close(first.view(-1, D)[t], torch.tensor(expected), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits[t], torch.tensor(expected_logits), rtol=1e-4, atol=1e-5)
        met |= set(chosen)
        # The second layer is held to its own input, so that no rounding of the first can turn a near-tie.
        again, again_logits, chosen = released_token(
            first.view(-1, D)[t].tolist(), logits[t].tolist(), states[1], options
        )
        torch.testing.assert_close(second.view(-1, D)[t], torch.tensor(again), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(last_logits[t], torch.tensor(again_logits), rtol=1e-4, atol=1e-5)
        met |= set(chosen)
    assert met == set(range(E))  # every kind of expert took part


def forced(first, second, options):
    """A layer with a one-layer gate in which every token with x_0 = 1 chooses these two experts."""
    state = released_weights(options)
    gate = torch.zeros(E, D)
    gate[first, 0], gate[second, 0] = 3.0, 2.0
    state["moe.gate.wg.weight"] = gate
    x = torch.randn(1, 9, D, generator=torch.Generator().manual_seed(3))
    x[..., 0] = 1.0
    return make_layer(options, state), state, x


@torch.no_grad()
def test_zero_expert_discards_nothing_and_copy_doubles():
    layer, _, x = forced(NAMES["zero"], NAMES["copy"], ReleasedOptions(two_layer_gate=False))
    torch.testing.assert_close(layer(x)[0], 2 * x)  # the paper: p_copy * x
    # With softmax after the selection nothing is cleared or doubled: the paper's meaning, rescaled.
    plain = ReleasedOptions(two_layer_gate=False, softmax_after_selection=True)
    layer, _, x = forced(NAMES["zero"], NAMES["copy"], plain)
    torch.testing.assert_close(layer(x)[0], x * torch.sigmoid(torch.tensor(2.0 - 3.0)))


@torch.no_grad()
def test_constant_expert_mixes_the_doubled_input():
    layer, state, x = forced(NAMES["zero"], NAMES["constant"], ReleasedOptions(two_layer_gate=False))
    a = (2 * x @ state["moe.experts.experts.3.wg.weight"].T).softmax(-1)
    expected = a[..., :1] * 2 * x + a[..., 1:] * state["moe.experts.experts.3.constant"]
    torch.testing.assert_close(layer(x)[0], expected)


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(1, 12), num_experts=st.integers(5, 9), seed=st.integers(0, 99), scale=st.sampled_from([1, 30])
)
def test_input_is_left_alone_and_tokens_dont_depend_on_one_another(tokens, num_experts, seed, scale):
    torch.manual_seed(seed)
    layer = ReleasedMoEPlusPlusLayer(D, F, num_experts)
    x = scale * torch.randn(1, tokens, D)
    kept = x.clone()
    with torch.no_grad():
        out, logits = layer(x)
        alone, _ = layer(x[:, :1])
    assert torch.equal(x, kept)  # the release doubles it in place
    assert out.shape == x.shape and logits.shape == (tokens, num_experts)
    torch.testing.assert_close(out[:, :1], alone, rtol=1e-5, atol=1e-6)  # no capacity: nobody is displaced


def test_gradients_are_refused_with_the_reason():
    layer = ReleasedMoEPlusPlusLayer(D, F, E)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    with pytest.raises(RuntimeError, match="can't be trained"):
        layer(torch.randn(1, 3, D, requires_grad=True))
    with torch.inference_mode():
        layer(torch.randn(1, 3, D))


def test_half_precision_stays_close_and_keeps_its_type():
    options = ReleasedOptions()
    layer = make_layer(options, released_weights(options))
    x = torch.randn(1, 50, D, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.no_grad():
        expected, _ = layer(x.float())
        out, logits = layer.to(torch.bfloat16)(x)
    assert out.dtype == torch.bfloat16 and logits.dtype == torch.float32
    near = (out.float() - expected).abs().amax(-1) < 0.1 * expected.abs().max()
    assert near.float().mean() > 0.9  # rounded weights may turn a near-tie


def test_weights_that_dont_fit_are_refused_by_name():
    options = ReleasedOptions()
    layer, state = ReleasedMoEPlusPlusLayer(D, F, E, options), released_weights(options)
    name = "moe.experts.experts.1.up_proj.weight"
    with pytest.raises(ValueError, match=r"moe\.experts\.experts\.1\.up_proj\.weight is missing"):
        layer.load_released({key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match=r"moe\.gate\.bias = \(7,\): must be a weight that this layer has"):
        layer.load_released(state | {"moe.gate.bias": torch.zeros(E)})
    with pytest.raises(ValueError, match=r"up_proj\.weight = \(5, 6\): must be \(10, 6\)"):
        layer.load_released(state | {name: torch.zeros(F, D)})


def test_layer_without_an_ffn_expert_is_refused():
    with pytest.raises(ValueError, match="num_experts = 4: must be > 4"):
        ReleasedMoEPlusPlusLayer(D, F, 4)
