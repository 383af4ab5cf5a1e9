"""Turning a part on changes the number that it is there for, on text that the model hasn't seen.

Models of a few thousand parameters, trained on verse letter by letter; every line is a document. All begin with the
same weights and see the same batches.
"""

from functools import cache

import pytest
import torch

from ava_core.config.loss import LossConfig
from ava_core.losses import IGNORE_INDEX, NgramRepetition, TokenContext, UnifiedLoss, future_labels, token_nll
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM, attach_prediction_heads
from tests.conftest import ASSETS

END = 0
STEPS, BATCH, LENGTH = 80, 4, 40
ROUTER_WEIGHTS = ("balance_loss_weight", "router_z_loss_weight", "router_diversity_weight")


@cache
def stream() -> tuple[torch.Tensor, torch.Tensor]:
    """Letters to train on and letters to measure on; token 0 ends a line."""
    text = (ASSETS / "verse.txt").read_text()[:24_000]
    letters = {letter: index for index, letter in enumerate(["\n", *sorted(set(text) - {"\n"})])}
    tokens = torch.tensor([letters[letter] for letter in text])
    return tokens[:21_000], tokens[21_000:]


def windows(tokens, starts):
    rows = tokens[torch.as_tensor(starts)[:, None] + torch.arange(LENGTH + 1)]
    inputs, labels = rows[:, :-1], rows[:, 1:]
    return inputs, labels, (inputs == END).cumsum(-1)


@cache
def trained(letters: int | None = None, **changes) -> EnhancedMoEForCausalLM:
    """The model after `STEPS` steps on so many letters; `changes` are of LossConfig, or weights of the routers."""
    torch.manual_seed(0)
    tokens = stream()[0][:letters]
    config = EnhancedMoEConfig(
        **{
            "vocab_size": int(torch.cat(stream()).max()) + 1,
            "hidden_size": 32,
            "num_layers": 1,
            "num_attention_heads": 2,
            "num_ffn_experts": 3,
            "num_experts_per_token": 1,
            "expert_intermediate_size": 32,
            "num_zero_experts": 1,
            "num_copy_experts": 0,
            "num_constant_experts": 0,
            "eos_token_id": END,
            "balance_loss_weight": 0.0,
            "router_z_loss_weight": 0.0,
            **{name: changes[name] for name in ROUTER_WEIGHTS if name in changes},
        }
    )
    model = EnhancedMoEForCausalLM(config).train()
    loss = LossConfig(**{name: value for name, value in changes.items() if name not in ROUTER_WEIGHTS})
    model.loss_function = UnifiedLoss.from_config(
        loss, end_token_id=END, **{name: getattr(config, name) for name in ROUTER_WEIGHTS}
    )
    if model.loss_function.multi_token is not None:
        attach_prediction_heads(model, loss.multi_token_depth)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        starts = torch.randint(0, len(tokens) - LENGTH, (BATCH,), generator=generator)
        inputs, labels, documents = windows(tokens, starts)
        output = model(inputs, shift_labels=labels, document_ids=documents, return_logits=False)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def measured(model):
    """Logits (T, V), inputs (B, S), labels (B, S), documents (B, S) and the model's outputs on held-out text."""
    tokens = stream()[1]
    inputs, labels, documents = windows(tokens, range(0, len(tokens) - LENGTH - 1, LENGTH))
    output = model(inputs, shift_labels=labels, document_ids=documents, output_router_logits=True, use_cache=False)
    return output.logits.flatten(0, 1), inputs, labels, documents, output


def entropy(model) -> float:
    """Mean entropy of the predictions, nats: how unsure the model is."""
    return torch.special.entr(measured(model)[0].softmax(-1)).sum(-1).mean().item()


def log_partition(model) -> float:
    return measured(model)[0].logsumexp(-1).abs().mean().item()


def repeated(model) -> float:
    """Mean probability of the last letter where the text has another."""
    logits, inputs, labels, *_ = measured(model)
    p = logits.softmax(-1).gather(1, inputs.reshape(-1, 1))[:, 0]
    return p[(inputs != labels).flatten()].mean().item()


def repeated_ngram(model) -> float:
    """Mean probability of letters that would complete a trigram of the same line again, and don't."""
    logits, inputs, labels, documents, _ = measured(model)
    context = TokenContext(inputs_BS=inputs, document_ids_BS=documents)
    found = NgramRepetition(size=2).candidates(labels, context)
    assert len(found.rows_N) > 200
    return logits.softmax(-1)[found.rows_N, found.tokens_N].mean().item()


def early_end(model) -> float:
    """Mean probability of ending the line where it goes on."""
    logits, _, labels, *_ = measured(model)
    return logits.softmax(-1)[labels.flatten() != END, END].mean().item()


@torch.no_grad()
def second_next(model) -> float:
    """Nats per letter of the head for the letter after the next one; a fresh head where there is none."""
    if model.prediction_heads is None:
        attach_prediction_heads(model, 1)
    tokens = stream()[1]
    inputs, labels, documents = windows(tokens, range(0, len(tokens) - LENGTH - 1, LENGTH))
    hidden = model.model(inputs, document_ids=documents, use_cache=False).last_hidden_state
    targets = future_labels(labels, 1, documents)
    nll = token_nll(model.lm_head(model.prediction_heads(hidden)[0]), targets)
    return nll[targets != IGNORE_INDEX].mean().item()


def overlap(model) -> float:
    """Mean cosine between two experts' probabilities over the tokens: 1 if they see the same ones."""
    probabilities = measured(model)[4].router_logits[0].softmax(-1)
    columns = torch.nn.functional.normalize(probabilities, dim=0)
    cosines = columns.T @ columns
    return cosines[~torch.eye(len(cosines), dtype=torch.bool)].mean().item()


def unevenness(model) -> float:
    return measured(model)[4].router_statistics[0].load_cv.item()


def router_log_partition(model) -> float:
    return measured(model)[4].router_logits[0].logsumexp(-1).square().mean().item()


CASES = [
    ({"label_smoothing": 0.3}, entropy, 1.1, None),
    ({"temperature": 2.0}, entropy, None, 0.9),
    ({"z_loss_weight": 0.1}, log_partition, None, 0.5),
    ({"repetition_weight": 20.0}, repeated, None, 0.7),
    ({"ngram_weight": 100.0, "ngram_size": 2}, repeated_ngram, None, 0.8),
    ({"early_end_weight": 3.0}, early_end, None, 0.7),
    ({"multi_token_weight": 1.0}, second_next, None, 0.93),
    ({"balance_loss_weight": 1.0}, unevenness, None, 0.6),
    ({"router_z_loss_weight": 0.1}, router_log_partition, None, 0.5),
    ({"router_diversity_weight": 1.0}, overlap, None, 0.5),
]


@pytest.mark.parametrize(
    ("changes", "figure", "at_least", "at_most"), CASES, ids=[next(iter(case[0])) for case in CASES]
)
def test_part_changes_the_number_it_is_for(changes, figure, at_least, at_most):
    ratio = figure(trained(**changes)) / figure(trained())
    assert at_least is None or ratio > at_least
    assert at_most is None or ratio < at_most


def test_focal_loss_leaves_a_model_that_learns_by_heart_less_sure():
    few = 200
    plain, focal = trained(few), trained(few, focal_weight=10.0, focal_gamma=3.0)
    assert entropy(focal) > 1.1 * entropy(plain)
