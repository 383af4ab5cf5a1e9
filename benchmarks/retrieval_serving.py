"""What looking passages up adds to the time to the first token of `ava serve`.

Usage: python -m benchmarks.retrieval_serving [--passages 100000] [--requests 60] [--results FOLDER]

The index has the default's parts, BM25's columns and vectors of MiniLM's length: its passages are windows of 40 words
of the corpus that `make data` fetches, its vectors are drawn as in `benchmarks.retrieval_stores` (to embed so many
takes an hour), and each question is really embedded by MiniLM. The model is that of `benchmarks.load`: cpu/small's
shapes in 4 bits. Three requests take turns: a question of 12 words alone; the same with `"retrieval": {"top_k": 4}`,
hybrid; and, as a prompt without retrieval, the text that the model read in the second. The second less the third is
what search and placing add; the third less the first, what reading more tokens does. CPU time is the server's, by its
own /metrics, for one new token: what it takes where nothing else runs.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from ava_core.config.hardware import usable_cores
from ava_core.retrieval.building import building_index
from ava_core.retrieval.embedding.minilm import MiniLM
from ava_core.retrieval.passage import Passage
from benchmarks import hardware, report
from benchmarks.load import make_model
from benchmarks.retrieval_stores import CHUNK, DIMENSION, drawn
from benchmarks.served import NAME, serving

WORDS, ASKED_WORDS = 40, 12
NEW = 2
WARM_UP = 5
KINDS = ("alone", "retrieval", "same text")


def corpus_words() -> list[str]:
    """Of the corpus, in order."""
    texts = [path.read_text(errors="replace") for path in sorted(Path("data/raw").rglob("*.md"))]
    if not texts:
        raise SystemExit("data/raw: no texts for passages: run `make data`")
    return " ".join(texts).split()


def build(folder: Path, count: int, words: Sequence[str]) -> Path:
    """An index of so many windows of the words."""
    starts = np.random.default_rng(3).integers(len(words) - WORDS, size=count).tolist()
    identity = MiniLM.open(1).identity
    settings = {"embedding": "minilm"}
    with building_index(folder / "index", embedding=identity, dimension=DIMENSION, settings=settings) as builder:
        for first, vectors in zip(range(0, count, CHUNK), drawn(count, 1), strict=True):
            texts = [" ".join(words[start : start + WORDS]) for start in starts[first : first + CHUNK]]
            builder.add([Passage(text, f"d{at >> 5}", 0, len(text)) for at, text in enumerate(texts, first)], vectors)
    return folder / "index"


class Server:
    """Asks a server, and times it."""

    def __init__(self, address: str) -> None:
        self._http = httpx.Client(base_url=address, timeout=120)

    def ask(self, **body: Any) -> Any:
        """An answer."""
        asked = {"model": NAME, "temperature": 0, "max_tokens": NEW, **body}
        return self._http.post("/v1/completions", json=asked).raise_for_status().json()

    def first_token(self, **body: Any) -> tuple[float, float]:
        """Seconds to the first token by the clock; those of the server's CPU for one that only reads the prompt."""
        asked = {"model": NAME, "temperature": 0, "max_tokens": NEW, "stream": True, **body}
        started = time.perf_counter()
        with self._http.stream("POST", "/v1/completions", json=asked) as answer:
            lines = answer.iter_lines()
            next(lines)
            seconds = time.perf_counter() - started
            for _ in lines:
                pass
        before = self._cpu()
        self.ask(**{**body, "max_tokens": 1})
        return seconds, self._cpu() - before

    def mean_search(self) -> float:
        """Milliseconds of a search, by the server's clock."""
        return 1000 * self._metric("ava_retrieval_seconds_sum") / self._metric("ava_retrieval_seconds_count")

    def _cpu(self) -> float:
        return self._metric("process_cpu_seconds_total")

    def _metric(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)", self._http.get("/metrics").text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])


def measure(server: Server, questions: Sequence[str]) -> dict[str, dict[str, float]]:
    """Milliseconds by kind of request, and the tokens of their prompts."""
    times: dict[str, list[tuple[float, float, int]]] = {kind: [] for kind in KINDS}
    for number, question in enumerate(questions):
        looking = {"prompt": question, "retrieval": {"top_k": 4}}
        read = server.ask(**looking, echo=True, max_tokens=0)["choices"][0]["text"]
        for kind, body in zip(KINDS, ({"prompt": question}, looking, {"prompt": read}), strict=True):
            tokens = server.ask(**body)["usage"]["prompt_tokens"]
            if number >= WARM_UP:
                times[kind].append((*server.first_token(**body), tokens))
    rows = {kind: _row(np.array(found)) for kind, found in times.items()}
    differences = {"search and placing": ("retrieval", "same text"), "more tokens": ("same text", "alone")}
    for title, (more, less) in differences.items():
        rows[title] = _row(np.array(times[more]) - np.array(times[less]))
    return rows


def _row(found: np.ndarray) -> dict[str, float]:
    """Figures of (requests, 3): seconds, those of the CPU, tokens."""
    seconds, cpu, tokens = found.T
    p50, p99 = 1000 * np.percentile(seconds, [50, 99])
    return {"tokens": tokens.mean(), "p50 ms": p50, "p99 ms": p99, "CPU ms": 1000 * cpu.mean()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep."""
    description = (__doc__ or "").split("\n")[0]
    flags = argparse.ArgumentParser(prog="python -m benchmarks.retrieval_serving", description=description)
    flags.add_argument("--passages", type=int, default=100_000)
    flags.add_argument("--requests", type=int, default=60)
    flags.add_argument("--results", type=Path, help="folder to keep figures in; without it they are printed alone")
    known = flags.parse_args(arguments)
    words = corpus_words()
    picked = np.random.default_rng(7).integers(len(words) - ASKED_WORDS, size=known.requests + WARM_UP).tolist()
    questions = [" ".join(words[start : start + ASKED_WORDS]) for start in picked]
    with tempfile.TemporaryDirectory(prefix="ava-bench-") as name:
        index = build(Path(name), known.passages, words)
        with serving(make_model(Path(name)), "--index", str(index), "--no-access-log") as (address, _):
            server = Server(address)
            rows = measure(server, questions)
            search = server.mean_search()
    header = list(next(iter(rows.values())))
    print(report.table(["", *header], [[title, *(f"{row[key]:.1f}" for key in header)] for title, row in rows.items()]))
    print(f"\na search by the server's own clock, its wait included: {search:.1f} ms on average")
    if known.results:
        described = hardware.describe("cpu", usable_cores())
        kept = {"passages": known.passages, "requests": rows, "search_ms": search}
        report.keep(hardware.slug(described), "retrieval_serving", described, kept, known.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
