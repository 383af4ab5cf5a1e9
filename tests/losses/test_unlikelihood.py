"""-log(1 - p), however near p is to 1; and who the candidates of each part are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ava_core.losses import (
    IGNORE_INDEX,
    Candidates,
    EarlyEnd,
    NgramRepetition,
    Repetition,
    Rows,
    TokenContext,
)
from ava_core.losses import unlikelihood as unlikelihood_parts

A, B, C, D, END = 1, 2, 3, 4, 0


def unlikelihood(logits, tokens):
    labels = torch.zeros(len(logits), dtype=torch.long)
    return Rows(logits_TV=logits, labels_T=labels).unlikelihood(torch.arange(len(logits)), torch.tensor(tokens))


def pairs(part, inputs, labels, documents=None):
    """Candidates as (row, token)."""
    context = TokenContext(
        inputs_BS=torch.tensor(inputs), document_ids_BS=None if documents is None else torch.tensor(documents)
    )
    found = part.candidates(torch.tensor(labels), context)
    return list(zip(found.rows_N.tolist(), found.tokens_N.tolist(), strict=True))


def test_unlikelihood_by_hand():
    # p = 3/4, 1/4 and, of a row whose largest logit comes twice, 1/2
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)], [5.0, 5.0]])
    torch.testing.assert_close(unlikelihood(logits, [1, 0, 1]), torch.tensor([4.0, 4 / 3, 2.0]).log())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.integers(0, 5))
def test_unlikelihood_in_float32_is_that_of_float64(values, token):
    token = token % len(values)
    logits = torch.tensor([values], dtype=torch.float64)
    others = torch.cat((logits[:, :token], logits[:, token + 1 :]), dim=1)
    expected = logits.logsumexp(-1) - others.logsumexp(-1)
    torch.testing.assert_close(unlikelihood(logits.float(), [token]).double(), expected, rtol=1e-4, atol=1e-5)


def test_certain_tokens_have_finite_losses_and_gradients():
    logits = torch.tensor([[1000.0, 0.0, -1000.0]] * 3, requires_grad=True)
    value = unlikelihood(logits, [0, 1, 2])
    torch.testing.assert_close(value, torch.tensor([1000.0, 0.0, 0.0]))
    (grad,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(grad, torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    inputs_BS, labels_BS = torch.tensor([[A, B, A, B, A, C]]), torch.tensor([[B, A, C, A, IGNORE_INDEX, END]])
    context = TokenContext(inputs_BS=inputs_BS)
    for part in (Repetition(), NgramRepetition(size=2), EarlyEnd(end_token_id=END)):
        candidates = {part.name: part.candidates(labels_BS, context)}
        assert len(candidates[part.name].rows_N) > 0

        def loss(x, part=part, candidates=candidates):
            return part(Rows(logits_TV=x, labels_T=labels_BS.reshape(-1), candidates=candidates))

        assert torch.autograd.gradcheck(loss, logits)


def test_losses_of_several_candidates_of_a_row_add_up():
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    found = Candidates(rows_N=torch.tensor([1, 1]), tokens_N=torch.tensor([2, 3]))
    value = Repetition()(Rows(logits_TV=logits, labels_T=torch.tensor([0, 0]), candidates={"repetition": found}))
    p = logits[1].softmax(-1)
    torch.testing.assert_close(value, torch.stack((torch.tensor(0.0), -torch.log((1 - p[2]) * (1 - p[3])))))


def test_candidates_are_cut_into_chunks_at_rows():
    found = Candidates(rows_N=torch.tensor([0, 2, 2, 5]), tokens_N=torch.tensor([7, 8, 9, 6]))
    chunks = [(piece.rows_N.tolist(), piece.tokens_N.tolist()) for piece in found.chunks(6, 2)]
    assert chunks == [([0], [7]), ([0, 0], [8, 9]), ([1], [6])]
    assert [len(piece.rows_N) for piece in found.chunks(6, 4)] == [3, 1]


def test_repetition_is_against_the_input_unless_it_is_the_target():
    assert pairs(Repetition(), [[A, B, B, C]], [[B, B, C, IGNORE_INDEX]]) == [(0, A), (2, B)]


def test_early_end_is_against_the_end_wherever_the_document_goes_on():
    assert pairs(EarlyEnd(end_token_id=END), [[A, B, END]], [[B, END, IGNORE_INDEX]]) == [(0, END)]


def test_ngram_repetition_finds_what_followed_the_same_words_before():
    #          0  1  2  3  4  5  6
    inputs = [[A, B, C, A, B, D, A]]
    labels = [[B, C, A, B, D, A, B]]
    # n = 3: "A B" at row 4 was followed by C before; the target is D
    assert pairs(NgramRepetition(size=3), inputs, labels) == [(4, C)]
    # n = 2: "A" was always followed by B, which is the target at rows 3 and 6; "B" at row 4 by C
    assert pairs(NgramRepetition(size=2), inputs, labels) == [(4, C)]
    # n = 2 with other targets: all of "A" and "B" count, each follower once
    assert pairs(NgramRepetition(size=2), inputs, [[D] * 7]) == [(3, B), (4, C), (6, B)]


def test_ngram_repetition_has_each_follower_once():
    assert pairs(NgramRepetition(size=2), [[A, B, A, B, A, C, A]], [[D] * 7]) == [
        (2, B),
        (3, A),
        (4, B),
        (6, B),
        (6, C),
    ]


def test_ngrams_dont_reach_across_documents():
    inputs, labels = [[A, B, C, A, B, C]], [[D] * 6]
    assert pairs(NgramRepetition(size=2), inputs, labels) == [(3, B), (4, C), (5, A)]
    assert pairs(NgramRepetition(size=2), inputs, labels, [[0, 0, 0, 1, 1, 1]]) == []
    # the repetition lies within the second document, and its first words aren't those of the first one's end
    assert pairs(NgramRepetition(size=3), [[A, B, A, B, A, B]], labels, [[0, 0, 1, 1, 1, 1]]) == [(5, A)]


def test_padding_is_no_ngram():
    inputs, labels = [[END, END, END, A, END, END]], [[D] * 6]
    assert pairs(NgramRepetition(size=2), inputs, labels, [[-1, -1, -1, 0, -1, -1]]) == []


@pytest.mark.parametrize("length", [1, 2, 3])
def test_sequences_shorter_than_an_ngram_have_no_candidates(length):
    assert pairs(NgramRepetition(size=4), [[A] * length], [[B] * length]) == []


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 14), st.integers(2, 4), st.booleans(), st.integers(0, 99))
def test_ngram_repetition_is_that_of_a_search_by_hand(B, S, size, packed, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = torch.randint(0, 3, (2, B, S), generator=generator)
    documents = (inputs == 0).cumsum(-1) if packed else torch.zeros_like(inputs)
    expected = set()
    for b in range(B):
        for s in range(S):
            for j in range(s):
                ends = range(size - 1)
                if j < size - 2 or documents[b, j - size + 2] != documents[b, s]:
                    continue
                if all(inputs[b, s - i] == inputs[b, j - i] for i in ends) and inputs[b, j + 1] != labels[b, s]:
                    expected.add((b * S + s, int(inputs[b, j + 1])))
    found = pairs(NgramRepetition(size=size), inputs.tolist(), labels.tolist(), documents.tolist())
    assert len(found) == len(set(found)) and set(found) == expected
    assert [row for row, _ in found] == sorted(row for row, _ in found)


class Largest(TorchDispatchMode):
    """The most elements that a tensor has which an operation gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = result if isinstance(result, tuple | list) else [result]
        storages = [t.untyped_storage().nbytes() // t.element_size() for t in tensors if isinstance(t, torch.Tensor)]
        self.elements = max(self.elements, *storages, 0)
        return result


def ngrams(shape, size, block=None):
    """Candidates of random tokens in documents, in blocks of so many pairs, and the largest tensor on the way."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randint(0, 5, (2, *shape), generator=generator)
    documents = (torch.rand(shape, generator=generator) < 0.01).cumsum(-1)
    with pytest.MonkeyPatch.context() as patch, Largest() as largest:
        patch.setattr(unlikelihood_parts, "PAIRS", block or unlikelihood_parts.PAIRS)
        found = NgramRepetition(size=size).candidates(labels, TokenContext(inputs_BS=inputs, document_ids_BS=documents))
    return found, largest.elements


@pytest.mark.parametrize("block", [1, 100, 200, 5000, 20_000, 40_000])
def test_ngrams_in_blocks_are_those_of_all_pairs_at_once(block):
    whole, _ = ngrams((5, 90), 3, 10**9)
    found, _ = ngrams((5, 90), 3, block)
    assert torch.equal(found.rows_N, whole.rows_N) and torch.equal(found.tokens_N, whole.tokens_N)
    assert len(found.rows_N) > 100


def test_memory_of_ngrams_does_not_grow_with_the_square_of_the_sequence():
    S = 4096
    _, largest = ngrams((2, S), 4)
    assert largest <= unlikelihood_parts.PAIRS < S**2 // 3
    _, largest = ngrams((2, S), 4, 2**18)
    assert largest <= 2**18
    _, largest = ngrams((2, S), 4, 10**9)
    assert largest > S**2, "and it would be seen"
