"""`torch.compile` takes the whole model as one graph."""

import pytest
import torch

from ava_core.models.dispatch import combine, sort_by_expert

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("implementation", "router", "recompute"),
    [("dense", "top_k", False), ("grouped_mm", "top_k", True), ("grouped_mm", "confidence", False)],
)
def test_training_pass_is_one_graph_with_the_same_gradients(make_model, tokens, implementation, router, recompute):
    """In bfloat16 autocast, because PyTorch traces grouped products of no other type."""
    model = make_model(router=router, experts_implementation=implementation, num_layers=2).train()
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(tokens, labels=tokens).loss
        loss.backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0.05, atol=0.02, msg=name)


def test_evaluation_is_one_graph_that_serves_every_length(make_model, tokens):
    model = make_model(experts_implementation="dense", num_layers=2)
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    with torch.no_grad():
        for length in (12, 9, 7, 5, 10):
            out = compiled(tokens[:, :length], use_cache=False).logits
            torch.testing.assert_close(out, model(tokens[:, :length], use_cache=False).logits, rtol=1e-4, atol=2e-5)
    assert len(graphs) <= 2  # the first may be for its length alone


def test_replay_is_part_of_the_graph(make_model, tokens):
    model = make_model(experts_implementation="dense", num_layers=2)
    routes = model(tokens.flip(0), output_routes=True).routes
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        out = compiled(tokens, use_cache=False, routes=routes, output_routes=True)
        assert torch.equal(out.routes[0].expert_ids_TK, routes[0].expert_ids_TK)
        torch.testing.assert_close(out.logits, model(tokens, use_cache=False, routes=routes).logits)


def test_loss_on_logits_of_a_compiled_model_trains_its_routers(make_model, tokens):
    """One graph too; what the routers add to the backward pass is part of it."""
    model = make_model(experts_implementation="dense", num_layers=2, balance_loss_weight=3.0).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        logits = run(tokens, use_cache=False).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_the_forward_of_what_combines_experts_writes_nothing_in_place():
    # Compiled by PyTorch 2.11, such a forward has no gradient, and nothing says so.
    ids_TK = torch.tensor([[0, 2], [1, 0], [2, 1]])
    routed = sort_by_expert(ids_TK, torch.ones_like(ids_TK, dtype=torch.bool), 3, keep_unused=True)
    traced = []

    def backend(graph, _):
        traced.extend(node for each in graph.modules() if hasattr(each, "graph") for node in each.graph.nodes)
        return graph.forward

    rows, weights = torch.randn(6, 4, requires_grad=True), torch.rand(3, 2)
    torch.compile(lambda y: combine(y, weights, routed), backend=backend, fullgraph=True)(rows)
    called = [node.target for node in traced if node.op in ("call_function", "call_method")]
    assert torch.where in called
    assert not [target for target in called if getattr(target, "__name__", target) in ("iadd", "imul", "add_", "mul_")]
