"""A whole index at 100,000 and 1,000,000 passages, beside the same by hand with bm25s and FAISS.

Usage: python -m benchmarks.retrieval_scale [--passages N,N] [--subjects ava,by_hand] [--folder DIR]

Passages have 80 words, as unevenly frequent as those of a language, of a vocabulary of 200,000; their vectors are those
of `benchmarks.retrieval_stores`. Building counts passages per second, without making them, and the peak of memory
beyond what the process needs before: of all memory, and of anonymous memory, to which mapped files don't count. Then
another process asks 300 hybrid queries (8 words of a passage, and a vector near to another's) one at a time with one
thread, three times; the first doesn't count. CPU time is what a query takes where nothing else runs. By hand: bm25s
builds in memory, is saved and mapped; so is FAISS's inverted file; the best 100 of each are fused by rank.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ava_core.retrieval.words import words
from benchmarks.retrieval_stores import DIMENSION, ONE_THREAD, Faiss, drawn

VOCABULARY = 200_000
WORDS = 80
CHUNK = 10_000
QUERIES = 300
TOP_K = 10
DEPTH = 100


def texts(count: int, seed: int) -> Iterator[list[str]]:
    """Texts in chunks; the word of rank r has a probability of about 1 / r (Zipf)."""
    rng = np.random.default_rng(seed)
    shares = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    names = np.array([f"w{number:x}" for number in range(VOCABULARY)])
    for first in range(0, count, CHUNK):
        rows = min(CHUNK, count - first)
        picked = names[np.searchsorted(shares, rng.random((rows, WORDS)) * shares[-1])]
        yield [" ".join(row) for row in picked.tolist()]


def queries() -> list[tuple[str, np.ndarray]]:
    drawn_texts = next(texts(QUERIES, seed=5))
    return [
        (" ".join(text.split()[:8]), vector)
        for text, vector in zip(drawn_texts, next(drawn(QUERIES, seed=6)), strict=True)
    ]


class Clock:
    """Seconds of the work alone, by the clock and of the CPU; the peak of anonymous memory after each part."""

    def __init__(self) -> None:
        self.computed = 0.0
        self.seconds, self.start_mb, self.anonymous_mb = 0.0, memory()["VmHWM"], memory()["RssAnon"]
        self.start_anonymous = self.anonymous_mb

    def timed(self, work: Any, *arguments: Any, **options: Any) -> Any:
        start, computed = time.perf_counter(), time.process_time()
        result = work(*arguments, **options)
        self.seconds += time.perf_counter() - start
        self.computed += time.process_time() - computed
        self.anonymous_mb = max(self.anonymous_mb, memory()["RssAnon"])
        return result


def memory() -> dict[str, float]:
    """MB of this process by /proc's names."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {parts[0][:-1]: int(parts[1]) / 1024 for parts in lines if parts[0] in ("VmHWM:", "RssAnon:")}


def build_ava(folder: Path, count: int, clock: Clock) -> None:
    from ava_core.retrieval.building import building_index
    from ava_core.retrieval.passage import Passage

    building = building_index(folder / "index", embedding="drawn", dimension=DIMENSION, settings={})
    builder = clock.timed(building.__enter__)
    number = 0
    for some, vectors in zip(texts(count, 3), drawn(count, 1), strict=True):
        passages = [Passage(text, f"d{number + i >> 5}", 0, len(text)) for i, text in enumerate(some)]
        clock.timed(builder.add, passages, vectors)
        number += len(some)
    clock.timed(building.__exit__, None, None, None)


def build_by_hand(folder: Path, count: int, clock: Clock) -> None:
    import bm25s

    file = folder / "vectors.f32"
    with file.open("wb") as opened:
        for vectors in drawn(count, 1):
            opened.write(vectors.data)
    corpus: list[str] = []
    with (folder / "passages.jsonl").open("w") as opened:
        for some in texts(count, 3):
            clock.timed(opened.writelines, [f"{json.dumps([text])}\n" for text in some])
            corpus += some
    retriever = bm25s.BM25()
    tokens = clock.timed(bm25s.tokenize, corpus, stopwords=None, show_progress=False)
    clock.timed(retriever.index, tokens, show_progress=False)
    del tokens
    clock.timed(retriever.save, folder / "bm25")
    clock.timed(Faiss().build, folder, file)


def ask_ava(folder: Path) -> Any:
    from ava_core.retrieval.folder import Index

    index = Index.open(folder / "index")
    return lambda text, vector: [hit.passage for hit in index.search(text, vector, TOP_K)]


def ask_by_hand(folder: Path) -> Any:
    import bm25s

    retriever = bm25s.BM25.load(folder / "bm25", mmap=True)
    store = Faiss()
    store.open(folder)

    def ask(text: str, vector: np.ndarray) -> list[int]:
        known = [word for word in words(text) if word in retriever.vocab_dict]
        lexical = retriever.retrieve([known], k=DEPTH, show_progress=False).documents[0]
        dense = store.index.search(vector[None], DEPTH)[1][0]
        scores: dict[int, float] = {}
        for ranking in (lexical.tolist(), dense.tolist()):
            for rank, passage in enumerate(ranking, 1):
                scores[passage] = scores.get(passage, 0.0) + 1 / (60 + rank)
        return sorted(scores, key=lambda passage: -scores[passage])[:TOP_K]

    return ask


BUILD = {"ava": build_ava, "by_hand": build_by_hand}
ASK = {"ava": ask_ava, "by_hand": ask_by_hand}


def measure_build(subject: str, folder: Path, count: int) -> dict[str, float]:
    import bm25s  # noqa: F401  what is imported counts as needed before
    import faiss  # noqa: F401

    clock = Clock()
    BUILD[subject](folder, count, clock)
    after = memory()["VmHWM"]
    return {
        "passages/s": count / clock.seconds,
        "per CPU second": count / clock.computed,
        "peak MB": after - clock.start_mb,
        "anonymous MB": clock.anonymous_mb - clock.start_anonymous,
    }


def measure_queries(subject: str, folder: Path, count: int) -> dict[str, float]:
    asked = queries()
    start = time.perf_counter()
    ask = ASK[subject](folder)
    opened = 1000 * (time.perf_counter() - start)
    times = []
    for repeat in range(3):  # the first round reads the files
        for text, vector in asked:
            start, computed = time.perf_counter(), time.process_time()
            ask(text, vector)
            if repeat:
                times.append((time.perf_counter() - start, time.process_time() - computed))
    (p50, cpu50), (p99, cpu99) = 1000 * np.percentile(times, [50, 99], axis=0)
    return {"open ms": opened, "p50 ms": p50, "p99 ms": p99, "CPU p50 ms": cpu50, "CPU p99 ms": cpu99}


def in_a_process(task: str, subject: str, folder: Path, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.retrieval_scale", "--task", task, subject, str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ONE_THREAD)
    if done.returncode:
        raise SystemExit(f"{subject}: {task} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", default="100000,1000000")
    parser.add_argument("--subjects", default=",".join(BUILD))
    parser.add_argument("--folder", type=Path, help="where indexes are built; by default a temporary folder")
    parser.add_argument("--task", nargs=4, metavar=("TASK", "SUBJECT", "FOLDER", "COUNT"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.task:
        task, subject, folder, count = flags.task
        measured = {"build": measure_build, "queries": measure_queries}[task](subject, Path(folder), int(count))
        print(json.dumps(measured))
        return
    header = True
    for count in map(int, flags.passages.split(",")):
        for subject in flags.subjects.split(","):
            with tempfile.TemporaryDirectory(dir=flags.folder) as name:
                row = in_a_process("build", subject, Path(name), count)
                row |= in_a_process("queries", subject, Path(name), count)
                (Path(name) / "vectors.f32").unlink(missing_ok=True)
                row["disk MB"] = sum(file.stat().st_size for file in Path(name).rglob("*") if file.is_file()) / 2**20
            if header:
                print(f"| passages | subject | {' | '.join(row)} |\n|{'---|' * (len(row) + 2)}")
                header = False
            cells = (f"{cell:,.0f}" if cell >= 100 else f"{cell:.3g}" for cell in row.values())
            print(f"| {count:,} | {subject} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
