"""Log-probabilities beside the text: their bytes joined are the text, and their offsets are positions in it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ava_core.config.generation import GenerationConfig
from ava_core.data.tokenizer import load_tokenizer
from ava_core.errors import AvaError
from ava_core.generation.prompts import encode
from ava_core.onnx.session import DecoderSession
from ava_core.serving.http.answers import Answer, Choice
from ava_core.serving.requests import Failed, Request
from ava_core.serving.sequence import Sequence
from tests.generation.test_text_stream import TOKENS

VOCABULARY = 600
"""More than the tokenizers have entries: rows of the embedding that nothing was trained for."""


def say(tokenizer, tokens, prompt=(), **options):
    """The deltas of a sequence whose model says `tokens`."""
    stop = options.pop("stop", [])
    request = Request(
        prompt_ids=tuple(prompt) or (97,),
        strategy="greedy",
        settings=GenerationConfig(max_new_tokens=max(len(tokens), 1), stop=stop),
        seed=0,
        logprobs=2,
        ignore_end=True,
        prompt_only=not tokens,
        echo=bool(prompt),
        **options,
    )
    sequence = Sequence(request, tokenizer, context=1000)
    if sequence.scores_prompt:
        sequence.score_prompt(0, logits_for([*request.prompt_ids[1:], 0]))
    if not tokens:
        return [sequence.end_prompt()]
    deltas = []
    for token in tokens:
        deltas.append(sequence.choose(logits_for([token])[0], token))
        if deltas[-1].finish_reason:
            break
    return deltas


def logits_for(tokens):
    """Logits by which each of these is the most probable, and the next one to it the second."""
    logits = np.zeros((len(tokens), VOCABULARY), np.float32)
    for row, token in enumerate(tokens):
        logits[row, [token, (token + 1) % VOCABULARY]] = 9.0, 5.0
    return logits


def whole(deltas):
    choice = Choice()
    for delta in deltas:
        choice.add(delta)
    return choice


@example(prompt=[0xE2, 0x80], tokens=[], stop=["\ufffd"])
@example(prompt=[0xE2, 0x80], tokens=[97, 97], stop=["\ufffda"])
@example(prompt=[0xE2, 0x80], tokens=[0xA6, 97], stop=["…", "a"])
@given(
    prompt=TOKENS, tokens=TOKENS, stop=st.lists(st.sampled_from(["a", "\ufffd", "\u0301", "👩\u200d", "ß"]), max_size=2)
)
@settings(max_examples=300, deadline=None)
def test_bytes_joined_are_the_text_and_offsets_are_positions_in_it(byte_tokenizer, prompt, tokens, stop):
    if not prompt and not tokens:
        return
    deltas = say(byte_tokenizer, tokens, prompt, stop=stop)
    choice = whole(deltas)
    assert b"".join(given.data for given in choice.logprobs).decode(errors="replace") == choice.text
    cut = choice.finish_reason == "stop"
    assert len(choice.logprobs) >= len(prompt), "no stop string is looked for in the prompt"
    said = [*prompt, *tokens]
    assert [given.token for given in choice.logprobs] == said[: len(choice.logprobs)]
    assert cut or len(choice.logprobs) == len(said)
    written = b""
    for given_ in choice.logprobs:
        before, after = written, written + given_.data
        # The character at the offset is the first that these bytes bear on.
        assert choice.text[: given_.offset] == after.decode(errors="replace")[: given_.offset]
        assert len(before.decode(errors="ignore")) <= given_.offset <= len(before.decode(errors="replace"))
        if given_.data and given_.data.decode(errors="ignore").encode() == given_.data:
            assert choice.text.startswith(given_.data.decode(), given_.offset)
        written = after
    shown = ""
    for delta in deltas:
        shown += delta.text
        for given_ in delta.logprobs:
            assert not given_.data or given_.offset < len(shown), "not before its text"


def test_part_of_a_token_before_a_stop_string_is_in_the_bytes(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    tokens = encode(tokenizer, "To be, or")
    assert len(tokens) < len("To be, or")
    choice = whole(say(tokenizer, tokens, stop=["e, "]))
    assert (choice.text, choice.finish_reason) == ("To b", "stop")
    assert b"".join(given.data for given in choice.logprobs) == b"To b"
    assert [given.token for given in choice.logprobs] == tokens[: len(choice.logprobs)]


def test_logprobs_wait_for_text_that_may_be_a_stop_string(byte_tokenizer):
    deltas = say(byte_tokenizer, list(b"one<en."), stop=["<end>"])
    assert [(delta.text, len(delta.logprobs)) for delta in deltas] == [
        ("o", 1), ("n", 1), ("e", 1), ("", 0), ("", 0), ("", 0), ("<en.", 4)
    ]  # fmt: skip


def test_answers_name_parts_of_characters_as_openai_does_and_lose_no_alternative(byte_tokenizer):
    tokens = [*"é…".encode(), 256, 299]
    choice = whole(say(byte_tokenizer, tokens, prompt=[0xE2, 98]))
    complete = Answer("m", chat=False, prompt_tokens=2, tokenizer=byte_tokenizer).whole([choice])["choices"][0]
    logprobs = complete["logprobs"]
    assert complete["text"] == "\ufffdbé…"
    assert logprobs["tokens"] == [
        r"bytes:\xe2", "b", r"bytes:\xc3", r"bytes:\xa9", r"bytes:\xe2", r"bytes:\x80", r"bytes:\xa6", "<|end|>",
        "token_id:299",
    ]  # fmt: skip
    assert logprobs["text_offset"] == [0, 1, 2, 2, 3, 3, 3, 4, 4]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert all(len(top) == 2 for top in logprobs["top_logprobs"][1:])
    assert all(
        max(top.values()) == value
        for top, value in zip(logprobs["top_logprobs"][1:], logprobs["token_logprobs"][1:], strict=True)
    )
    chat = Answer("m", chat=True, prompt_tokens=2, tokenizer=byte_tokenizer).whole([whole(say(byte_tokenizer, tokens))])
    content = chat["choices"][0]["logprobs"]["content"]
    assert [each["bytes"] for each in content] == [[0xC3], [0xA9], [0xE2], [0x80], [0xA6], [], []]
    assert [len(each["top_logprobs"]) for each in content] == [2] * 7
    assert content[0]["top_logprobs"][1] == {
        "token": r"bytes:\xc4",
        "logprob": content[0]["top_logprobs"][1]["logprob"],
        "bytes": [0xC4],
    }


def test_chosen_token_is_among_the_alternatives_of_a_completion(byte_tokenizer):
    sequence = Sequence(
        Request(prompt_ids=(97,), strategy="nucleus", settings=GenerationConfig(), seed=3, logprobs=0),
        byte_tokenizer,
        context=100,
    )
    answer = Answer("m", chat=False, prompt_tokens=1, tokenizer=byte_tokenizer)
    choice = whole([sequence.choose(np.zeros(256, np.float32), 0)])
    logprobs = answer.whole([choice])["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{logprobs["tokens"][0]: pytest.approx(-np.log(256))}]


# Of the prompt, by a real decoder


@pytest.fixture
def log_softmax_of(served_model):
    """The model's log-probabilities of all tokens after each of these, in one pass."""
    decoder = DecoderSession.load(served_model, threads=1)

    def compute(ids):
        logits = decoder.run(np.asarray([ids], np.int64), decoder.cache(1, len(ids)), all_logits=True)[0]
        logits = logits.astype(np.float64)
        return (
            logits
            - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
            - logits.max(-1, keepdims=True)
        )

    return compute


@pytest.mark.parametrize("new", [0, 4])
def test_prompt_s_logprobs_are_the_model_s_however_it_is_read(make_engine, collector, ask, log_softmax_of, new):
    engine = make_engine(slots=2, chunk=5)
    plain = ask(1, length=23, strategy="greedy", logprobs=3, max_new_tokens=max(new, 1))
    request = replace(plain, echo=True, prompt_only=new == 0)
    neighbour = ask(2, length=9, strategy="greedy", max_new_tokens=30)
    echoed, _, alone = map(whole, collector.wait([engine.submit(each) for each in (request, neighbour, plain)]))
    assert (echoed.tokens, echoed.finish_reason) == (new, "length")
    assert len(echoed.logprobs) == 23 + new
    ids = [given.token for given in echoed.logprobs]
    assert tuple(ids[:23]) == request.prompt_ids
    assert echoed.logprobs[0].logprob is None
    expected = log_softmax_of(ids)
    for index, given_ in enumerate(echoed.logprobs[1:]):
        assert given_.logprob == pytest.approx(expected[index, given_.token], abs=2e-3)
        assert len(given_.top) == 3
        greedy = given_.logprob == max(given_.top.values())
        assert greedy == (given_.token == max(given_.top, key=given_.top.get))
    assert b"".join(given.data for given in echoed.logprobs).decode() == echoed.text
    if new:
        assert echoed.text.endswith(alone.text)
        assert [given.token for given in alone.logprobs] == ids[23:]
        assert alone.logprobs[0].offset == 0


def test_prompt_that_fills_the_context_can_be_scored_but_not_continued(make_engine, collector, ask):
    engine = make_engine(chunk=50)
    full = ask(length=128, logprobs=0)
    [deltas] = collector.wait([engine.submit(replace(full, echo=True, prompt_only=True))])
    assert len(whole(deltas).logprobs) == 128
    with pytest.raises(AvaError, match="must be 1 to 127"):
        engine.submit(full)
    with pytest.raises(AvaError, match="must be 1 to 128"):
        engine.submit(replace(ask(length=129), prompt_only=True))
    assert engine.drain(30)


def test_logits_that_are_no_numbers_fail_a_prompt_s_scoring(make_engine, collector, ask, served_model):
    decoder = DecoderSession.load(served_model, threads=1)
    real = decoder.run
    decoder.run = lambda *arguments, **options: np.full_like(real(*arguments, **options), np.nan)
    [[failed]] = collector.wait([make_engine(decoder).submit(replace(ask(logprobs=1), echo=True))])
    assert isinstance(failed, Failed) and "no numbers" in str(failed)
