"""The benchmark of retrieval in the server: what it compares is one text, and its index is one of the default kind."""

import numpy as np
import pytest

from ava_core.retrieval.retriever import Retriever
from benchmarks import retrieval_serving


class Scripted:
    """As `Server`: a prompt takes a second for each of its characters, and a look-up 10 seconds."""

    def __init__(self):
        self.asked = []

    def read(self, prompt, retrieval=None):
        return prompt if retrieval is None else f"passages {prompt}"

    def ask(self, *, echo=False, max_tokens=1, **body):
        text = self.read(**body)
        return {"choices": [{"text": text if echo else ""}], "usage": {"prompt_tokens": len(text)}}

    def first_token(self, **body):
        self.asked.append(body)
        return len(self.read(**body)) + 10.0 * ("retrieval" in body), 1.0


def test_what_search_and_reading_add_is_told_apart():
    server, questions = Scripted(), ["who?"] * (retrieval_serving.WARM_UP + 4)
    rows = retrieval_serving.measure(server, questions)
    assert rows["search and placing"]["p50 ms"] == pytest.approx(10_000)
    assert rows["search and placing"]["tokens"] == 0
    assert rows["more tokens"]["p50 ms"] == pytest.approx(1000 * len("passages "))
    assert rows["alone"]["tokens"] == 4 and rows["alone"]["CPU ms"] == 1000
    assert server.asked[2] == {"prompt": "passages who?"}
    assert len(server.asked) == 3 * 4  # without those that warm up


def test_its_index_is_searched_both_ways(tmp_path):
    words = [f"word{number}" for number in np.random.default_rng(0).integers(50, size=400)]
    retriever = Retriever.open(retrieval_serving.build(tmp_path, 60, words), threads=1)
    assert retriever.default_mode == "hybrid" and len(retriever.index) == 60
    first = retriever.index.passages[0].text
    assert retriever.search(first, 1, mode="lexical")[0].passage.text == first
