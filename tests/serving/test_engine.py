import threading
from dataclasses import replace

import numpy as np
import pytest

from ava_core.errors import AvaError
from ava_core.generation.decoding import generate
from ava_core.generation.loading import load_model
from ava_core.onnx.session import DecoderSession
from ava_core.serving.requests import Draining, Failed, QueueFull
from ava_core.serving.streams import Streams


def texts(given) -> list[str]:
    return ["".join(delta.text for delta in deltas) for deltas in given]


def test_text_of_a_request_is_that_of_generate_whatever_else_is_in_the_batch(make_engine, collector, ask, served_model):
    engine = make_engine(slots=4, chunk=5)
    strategies = ["nucleus", "greedy", "top-k", "min-p", "nucleus", "greedy", "nucleus"]
    requests = [ask(index, length=4 + 3 * index, strategy=strategy) for index, strategy in enumerate(strategies)]
    together = texts(collector.wait([engine.submit(request) for request in requests]))
    model, tokenizer = load_model(served_model, threads=1)
    for request, text in zip(requests, together, strict=True):
        prompt = tokenizer.decode(request.prompt_ids)
        assert tokenizer(prompt)["input_ids"] == list(request.prompt_ids)
        [expected] = generate(
            model, tokenizer, [prompt], strategy=request.strategy, settings=request.settings, seed=request.seed
        )
        assert prompt + text == expected
    alone = [texts(collector.wait([engine.submit(request)]))[0] for request in requests]
    assert alone == together
    stats = engine.stats()
    assert (stats.queued, stats.running) == (0, 0)
    assert stats.prompt_tokens == 2 * sum(len(request.prompt_ids) for request in requests)


def test_last_delta_says_why_and_how_many(make_engine, collector, ask):
    engine = make_engine()
    [deltas] = collector.wait([engine.submit(ask(max_new_tokens=7))])
    assert (deltas[-1].finish_reason, deltas[-1].tokens) == ("length", 7)
    [deltas] = collector.wait([engine.submit(ask(length=120, max_new_tokens=50))])
    assert (deltas[-1].finish_reason, deltas[-1].tokens) == ("length", 8), "the model's context is 128"
    [whole] = texts(collector.wait([engine.submit(ask(strategy="greedy"))]))
    stop = whole[4:7]
    [deltas] = collector.wait([engine.submit(ask(strategy="greedy", stop=[stop]))])
    assert deltas[-1].finish_reason == "stop"
    assert texts([deltas]) == [whole[: whole.index(stop)]]


def test_end_of_a_document_ends_the_text(make_engine, collector, ask, served_model):
    decoder = DecoderSession.load(served_model, threads=1)
    real, end = decoder.run, 0

    def ends(tokens_BS, cache, **arguments):
        logits = real(tokens_BS, cache, **arguments).copy()
        if tokens_BS.shape[1] == 1 and cache.lengths.max() > 12:
            logits[:, end] = 1e4
        return logits

    decoder.run = ends
    engine = make_engine(decoder)
    request = ask(length=9, strategy="greedy")
    ended, went_on = collector.wait([engine.submit(request), engine.submit(replace(request, ignore_end=True))])
    assert ended[-1].finish_reason == "stop"
    assert ended[-1].tokens < 20
    assert went_on[-1].finish_reason == "length"
    assert went_on[-1].tokens == request.settings.max_new_tokens


def test_log_probabilities_are_the_models(make_engine, collector, ask):
    [deltas] = collector.wait([make_engine().submit(ask(strategy="greedy", logprobs=3, max_new_tokens=5))])
    logprobs = [each for delta in deltas for each in delta.logprobs]
    assert len(logprobs) == 5
    for each in logprobs:
        assert len(each.top) == 3
        assert each.logprob == max(each.top.values()) == each.top[each.token] < 0


def test_full_queue_refuses_and_says_when_to_come_again(make_engine, collector, ask, served_model):
    decoder, go_on = DecoderSession.load(served_model, threads=1), threading.Event()
    real = decoder.run

    def held(*arguments, **options):
        assert go_on.wait(30)
        return real(*arguments, **options)

    decoder.run = held
    engine = make_engine(decoder, slots=2, max_queue=3)
    accepted = []
    with pytest.raises(QueueFull, match="are waiting already: try again in") as caught:
        for index in range(9):
            accepted.append(engine.submit(ask(index)))
    assert 5 <= len(accepted) <= 6
    assert caught.value.retry_after >= 1
    go_on.set()
    assert all(deltas[-1].finish_reason for deltas in collector.wait(accepted))


def test_cancelled_request_leaves_its_row_to_others(make_engine, collector, ask):
    engine = make_engine(slots=1)
    long = engine.submit(ask(0, max_new_tokens=100))
    waiting = [engine.submit(ask(index)) for index in (1, 2)]
    waiting[0].cancel()
    long.cancel()
    [deltas] = collector.wait([waiting[1]])
    assert deltas[-1].tokens == 20
    assert not collector.given[waiting[0]]
    assert engine.drain(10)


def test_draining_engine_finishes_what_it_has_and_takes_no_more(make_engine, collector, ask):
    engine = make_engine(slots=2)
    running = [engine.submit(ask(index)) for index in range(5)]
    assert engine.drain(60)
    assert all(deltas[-1].finish_reason == "length" for deltas in collector.wait(running))
    with pytest.raises(Draining):
        engine.submit(ask())


def test_closed_engine_fails_what_is_left(make_engine, collector, ask):
    engine = make_engine(slots=1)
    left = [engine.submit(ask(index, max_new_tokens=110)) for index in range(3)]
    engine.close()
    assert any(isinstance(deltas[-1], Failed) for deltas in collector.wait(left))


@pytest.mark.parametrize("fault", ["raises", "no numbers"])
def test_failing_step_fails_its_requests_and_the_engine_goes_on(make_engine, collector, ask, served_model, fault):
    decoder = DecoderSession.load(served_model, threads=1)
    real, faults = decoder.run, [fault]

    def broken(*arguments, **options):
        logits = real(*arguments, **options)
        match faults.pop() if faults else "":
            case "raises":
                raise RuntimeError("out of memory")
            case "no numbers":
                return np.full_like(logits, np.nan)
        return logits

    decoder.run = broken
    engine = make_engine(decoder)
    [deltas] = collector.wait([engine.submit(ask())])
    assert isinstance(deltas[-1], Failed)
    [deltas] = collector.wait([engine.submit(ask())])
    assert deltas[-1].finish_reason == "length"
    assert not engine.stats().failed


@pytest.mark.parametrize("length", [0, 128])
def test_prompt_that_leaves_no_room_is_refused(make_engine, ask, length):
    with pytest.raises(AvaError, match=f"prompt: {length} tokens: must be 1 to 127"):
        make_engine().submit(ask(length=length))


def test_all_requests_of_a_client_are_taken_or_none(make_engine, collector, ask):
    engine = make_engine(slots=1, max_queue=2)
    with pytest.raises(QueueFull):
        Streams.open(engine, [ask(index, max_new_tokens=90) for index in range(9)])
    assert engine.drain(10)
    assert engine.stats().generated_tokens < 90


def test_thousands_of_requests_leave_nothing_behind(make_engine, collector, ask):
    engine = make_engine(slots=8, max_queue=10_000)
    collector.wait(
        [engine.submit(ask(index % 5, length=2, strategy="greedy", max_new_tokens=2)) for index in range(50)]
    )
    collector.given.clear()
    before = engine.stats().cache_bytes
    sequences = [engine.submit(ask(index % 5, length=2, strategy="greedy", max_new_tokens=2)) for index in range(1000)]
    assert len(collector.wait(sequences)) == 1000
    assert engine.stats().cache_bytes == before
    assert not engine._queue
    assert not engine._decoding
    assert len(engine._cache.bindings) <= 9


def test_failing_prompt_hurts_nobody_else(make_engine, collector, ask, served_model):
    decoder = DecoderSession.load(served_model, threads=1)
    real = decoder.run

    def broken(tokens_BS, *arguments, **options):
        if tokens_BS.shape[1] == 13:
            raise RuntimeError("out of memory")
        return real(tokens_BS, *arguments, **options)

    decoder.run = broken
    engine = make_engine(decoder)
    given = collector.wait([engine.submit(ask(length=9, max_new_tokens=60)), engine.submit(ask(length=13))])
    assert given[0][-1].finish_reason == "length"
    assert [type(delta) for delta in given[1]] == [Failed]


def test_engine_whose_thread_ended_refuses_instead_of_letting_wait(make_engine, ask):
    engine, faults = make_engine(), [True]

    def deliver(_given) -> None:
        if faults:
            faults.pop()
            raise RuntimeError("nobody takes it")

    engine.deliver = deliver
    engine.submit(ask())
    engine._thread.join(30)
    assert engine.stats().failed
    with pytest.raises(Failed, match="thread has ended"):
        engine.submit(ask())
    assert engine.drain(5)


def test_clients_that_left_keep_no_place_and_idle_time_makes_nobody_wait(make_engine, collector, ask, served_model):
    decoder, go_on = DecoderSession.load(served_model, threads=1), threading.Event()
    go_on.set()
    real = decoder.run

    def held(*arguments, **options):
        assert go_on.wait(30)
        return real(*arguments, **options)

    decoder.run = held
    engine = make_engine(decoder, slots=1, max_queue=2)
    engine._last_finish -= 3600
    collector.wait([engine.submit(ask())])
    go_on.clear()
    waiting = []
    with pytest.raises(QueueFull) as caught:
        for index in range(9):
            waiting.append(engine.submit(ask(index)))
    assert caught.value.retry_after < 60
    waiting[-1].cancel()
    waiting.append(engine.submit(ask()))
    go_on.set()
    assert len(collector.wait([waiting[0], waiting[-1]])) == 2
