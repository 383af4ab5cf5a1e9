"""`ava serve` as a process, with a model that was exported for it."""

import contextlib
import re
import signal
import subprocess
import sys
import threading

import httpx
import numpy as np
import openai
import pytest

from tests.conftest import _finished
from tests.serving.http.conftest import wait_until

COMMAND = (sys.executable, "-m", "ava_core.cli.main", "serve", "--port", "0", "--threads", "1")
pytestmark = pytest.mark.slow


@pytest.fixture
def quantized(tmp_path, tiny_model):
    """A folder as `ava quantize` leaves it, with float32 weights."""
    from transformers import AutoModelForCausalLM

    import ava_core.models  # noqa: F401  registers the architecture
    from ava_core.onnx.export import export_onnx

    folder = tmp_path / "quantized"
    folder.mkdir()
    export_onnx(AutoModelForCausalLM.from_pretrained(tiny_model).eval(), folder)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_model / name).read_bytes())
    return _finished(folder, "quantize", {"model": "0" * 64})


@pytest.fixture
def ava_serve(quantized, tmp_path):
    """Start the process; gives it and a client."""
    with contextlib.ExitStack() as stack:

        def start(*options):
            process = subprocess.Popen(
                [*COMMAND, "--model", str(quantized), *options],
                stdout=subprocess.PIPE,
                stderr=(tmp_path / "stderr").open("w"),
                text=True,
            )
            stack.callback(process.wait, 20)
            stack.callback(process.kill)
            timer = threading.Timer(60, process.kill)
            timer.start()
            line = process.stdout.readline()
            timer.cancel()
            address = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert address, (line, (tmp_path / "stderr").read_text())
            client = openai.OpenAI(base_url=f"{address[0]}/v1", api_key="k", max_retries=0, timeout=200)
            stack.callback(client.close)
            return process, client

        yield start


def stream_of(client, tokens):
    return client.completions.create(
        model="quantized", prompt=[5, 6], max_tokens=tokens, temperature=0, stream=True, seed=1
    )


def text_of(stream):
    chunks = [chunk.choices[0] for chunk in stream]
    assert chunks[-1].finish_reason in ("length", "stop")
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_lets_a_stream_finish_and_exits_0(ava_serve, tmp_path, number):
    process, client = ava_serve()
    whole = client.completions.create(model="quantized", prompt=[5, 6], max_tokens=120, temperature=0)
    stream = stream_of(client, 120)
    first = next(iter(stream)).choices[0].text
    process.send_signal(number)
    assert first + text_of(stream) == whole.choices[0].text
    assert process.wait(20) == 0, (tmp_path / "stderr").read_text()


def test_what_is_not_done_when_the_drain_runs_out_is_cut_off_and_said(ava_serve, tmp_path):
    # One row at a time: the last of 96 texts is seconds away, however fast the machine is.
    process, client = ava_serve("--drain-seconds", "0", "--slots", "1", "--max-queue", "100")
    options = {"prompt": [5, 6], "max_tokens": 120, "n": 16, "stream": True, "extra_body": {"ignore_eos": True}}
    first, *_, last = [client.completions.create(model="quantized", **options) for _ in range(6)]
    next(iter(first))
    process.send_signal(signal.SIGTERM)
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        for _ in last:
            pass
    assert process.wait(20) == 1
    assert re.search(r"ava: [1-9]\d* requests weren't done and were cut off", (tmp_path / "stderr").read_text())


def test_the_same_words_as_ava_generate(ava_serve, quantized):
    from ava_core.config.generation import GenerationConfig
    from ava_core.generation.decoding import generate
    from ava_core.generation.loading import load_model

    _, client = ava_serve()
    settings = GenerationConfig(max_new_tokens=20, temperature=0.75, top_p=0.9)
    model, tokenizer = load_model(quantized, threads=1)
    (expected,) = generate(model, tokenizer, ["My lord, "], strategy="nucleus", settings=settings, seed=7)
    answer = client.completions.create(
        model="quantized", prompt="My lord, ", max_tokens=20, temperature=0.75, top_p=0.9, seed=7, echo=True
    )
    assert answer.choices[0].text == expected


def test_a_client_that_leaves_and_extreme_options_harm_nobody(ava_serve):
    _, client = ava_serve()
    for options in ({"temperature": 1e-40}, {"extra_body": {"top_k": 10**9}}, {"top_p": 1e-30}):
        assert (
            client.completions.create(model="quantized", prompt="a", max_tokens=3, **options).choices[0].finish_reason
        )
    stream = stream_of(client, 120)
    next(iter(stream))
    stream.close()
    http = client._client

    def running():
        text = http.get(str(client.base_url).replace("/v1/", "/metrics")).text
        return re.search(r"^ava_running_requests (\S+)", text, re.MULTILINE)[1]

    wait_until(lambda: running() == "0.0")


def test_lm_eval_scores_the_server_as_it_scores_the_float_model(ava_serve, tiny_model):
    """Likelihood, greedy or not, of words after a context and of whole texts, by the harness's own two classes."""
    pytest.importorskip("tenacity", reason="lm_eval's local-completions needs it: pip install 'lm-eval[api]'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from transformers import AutoModelForCausalLM

    import ava_core.models  # noqa: F401  registers the architecture

    _, client = ava_serve()
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype="float32")
    local = HFLM(pretrained=model, tokenizer=str(tiny_model), device="cpu", batch_size=4)
    pairs = [
        ("To be, or", " not to be"),
        ("To be, or", " nöt … 👩\u200d🚀"),
        ("a <|endoftext|> b", " c"),
        ("", "My lord"),
        ("My lord", greedy_text(client, "My lord", 6)),
        ("My lord, I", " have"),
    ]
    choices = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    texts = [Instance("loglikelihood_rolling", {}, (text,), index) for index, text in enumerate(("To be", "O, my ß"))]
    expected = local.loglikelihood(choices, disable_tqdm=True)
    rolling = local.loglikelihood_rolling(texts, disable_tqdm=True)
    for options in ({"batch_size": 4}, {"num_concurrent": 3}, {"tokenized_requests": False}):
        served = LocalCompletionsAPI(
            model="quantized",
            base_url=f"{client.base_url}completions",
            tokenizer=str(tiny_model),
            tokenizer_backend="huggingface",
            max_length=128,
            **options,
        )
        # As text the harness sends what it has decoded, in which a special token is spelt out: text is text.
        kept = [0, 1, 4, 5] if options == {"tokenized_requests": False} else range(len(pairs))
        found = served.loglikelihood([choices[index] for index in kept], disable_tqdm=True)
        for index, (logprob, greedy) in zip(kept, found, strict=True):
            assert logprob == pytest.approx(expected[index][0], abs=1e-3), pairs[index]
            assert greedy == expected[index][1], pairs[index]
        if "tokenized_requests" not in options:
            assert served.loglikelihood_rolling(texts, disable_tqdm=True) == pytest.approx(rolling, abs=1e-3)
    assert [greedy for _, greedy in expected] == [False, False, False, False, True, False]


def greedy_text(client, prompt, tokens):
    answer = client.completions.create(model="quantized", prompt=prompt, max_tokens=tokens, temperature=0)
    return answer.choices[0].text


def test_a_stream_has_the_log_probabilities_of_the_whole_answer(ava_serve):
    _, client = ava_serve()
    asked = {
        "model": "quantized", "prompt": ["To be … ", "O"], "n": 2, "max_tokens": 12, "logprobs": 3, "echo": True,
        "seed": 4, "temperature": 1.5, "stop": ["e ", "th"],
    }  # fmt: skip
    whole = client.completions.create(**asked)
    chunks = [chunk.choices[0] for chunk in client.completions.create(**asked, stream=True)]
    for choice in whole.choices:
        mine = [chunk for chunk in chunks if chunk.index == choice.index]
        assert "".join(chunk.text for chunk in mine) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason
        for part in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            streamed = [each for chunk in mine if chunk.logprobs for each in getattr(chunk.logprobs, part)]
            assert streamed == getattr(choice.logprobs, part), part
        assert choice.logprobs.token_logprobs[0] is None
        assert all(3 <= len(top) <= 4 for top in choice.logprobs.top_logprobs[1:])
        assert choice.logprobs.text_offset == sorted(choice.logprobs.text_offset)
    assert {choice.text[:8] for choice in whole.choices[:2]} == {"To be … "}


def test_an_index_is_searched_by_a_real_server_and_another_is_built_through_it(ava_serve, tmp_path):
    """MiniLM's index here; another process embeds through this server, and gets the same passages."""
    from ava_core.config.retrieval import HttpEmbedding
    from ava_core.retrieval.building import building_index
    from ava_core.retrieval.embedding.http import HttpServer
    from ava_core.retrieval.embedding.minilm import MiniLM
    from tests.serving.http.indexes import TEXTS, passage

    given, minilm = [passage(text, at) for at, text in enumerate(TEXTS)], MiniLM.open(1)
    vectors = minilm.embed([one.searched for one in given])
    index = tmp_path / "index"
    with building_index(index, embedding=minilm.identity, dimension=384, settings={"embedding": "minilm"}) as builder:
        builder.add(given, vectors)
    _, client = ava_serve("--index", str(index))
    asked = {"model": "quantized", "prompt": "Who walks at night?", "max_tokens": 4, "temperature": 0}
    alone = client.completions.create(**asked)
    looked = client.completions.create(**asked, extra_body={"retrieval": {"top_k": 1, "mode": "dense"}})
    assert [one["document"] for one in looked.model_extra["retrieval"]] == ["play0.md"]
    assert looked.usage.prompt_tokens > alone.usage.prompt_tokens
    there = HttpServer(HttpEmbedding(url=str(client.base_url), model=minilm.identity)).embed(TEXTS)
    np.testing.assert_allclose(there, minilm.embed(TEXTS), atol=2e-6)
