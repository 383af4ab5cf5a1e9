"""Embedded stores of vectors beside one another: FAISS, LanceDB, USearch, and the store of `ava_core.retrieval`.

Usage: python -m benchmarks.retrieval_stores [--passages N] [--stores NAME,...] [--folder DIR]

Vectors of 384 dimensions and length 1 lie around 2,000 centres, as embeddings of text lie by topic. Each store is built
in a process of its own with one thread, from a file that is read in chunks: so its peak of memory is its own. Then
another process opens it and asks 200 queries one at a time, also with one thread. Prints, per store, recall@10 against
comparison with all vectors, milliseconds per query, passages per second, peak memory of both processes beyond what they
need before, bytes on disk, and whether a second build gives the same bytes. LanceDB and USearch are no dependencies of
Ava's: install them for this alone (`pip install lancedb usearch`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

DIMENSION = 384
CENTRES = 2000
QUERIES = 200
TOP_K = 10
CHUNK = 10_000
LISTS = 128
"""That a query reads of an inverted file, as `ava_core.retrieval` does."""
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "TOKIO_WORKER_THREADS", "LANCE_CPU_THREADS"), "1"
)


def drawn(count: int, seed: int) -> Iterator[np.ndarray]:
    """Vectors around the centres in chunks, (CHUNK, DIMENSION) of float32."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, DIMENSION), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    for first in range(0, count, CHUNK):
        rows = min(CHUNK, count - first)
        noise = rng.standard_normal((rows, DIMENSION), dtype=np.float32) * (0.9 / DIMENSION**0.5)
        vectors = centres[rng.integers(CENTRES, size=rows)] + noise
        yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def chunks(file: Path) -> Iterator[np.ndarray]:
    with file.open("rb") as opened:
        while len(values := np.fromfile(opened, np.float32, CHUNK * DIMENSION)):
            yield values.reshape(-1, DIMENSION)


def nearest(file: Path, queries: np.ndarray) -> list[list[int]]:
    """The TOP_K nearest of all vectors to each query."""
    numbers = np.zeros((len(queries), 0), np.int64)
    scores = np.zeros((len(queries), 0), np.float32)
    first = 0
    for vectors in chunks(file):
        numbers = np.hstack([numbers, np.tile(np.arange(first, first + len(vectors)), (len(queries), 1))])
        scores = np.hstack([scores, queries @ vectors.T])
        best = np.argsort(-scores, axis=1)[:, :TOP_K]
        numbers, scores = np.take_along_axis(numbers, best, 1), np.take_along_axis(scores, best, 1)
        first += len(vectors)
    return numbers.tolist()


class Ava:
    """The inverted file of `ava_core.retrieval`, written out of core; candidates ordered by the float16 vectors."""

    def build(self, folder: Path, file: Path) -> None:
        from ava_core.retrieval.vectors_build import VectorsWriter

        writer = VectorsWriter(folder, DIMENSION)
        for vectors in chunks(file):
            writer.add(vectors)
        writer.close()

    def open(self, folder: Path) -> None:
        from ava_core.retrieval.vectors import Vectors

        self.index = Vectors(folder)

    def search(self, query: np.ndarray) -> list[int]:
        return self.index.search(query, TOP_K)[0].tolist()


class Faiss:
    """FAISS by hand: IVF with 8-bit codes, in memory until it is written, then mapped."""

    def build(self, folder: Path, file: Path) -> None:
        import faiss

        count = file.stat().st_size // (4 * DIMENSION)
        index = faiss.index_factory(DIMENSION, f"IVF{max(1, count // 1024)},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter = 10
        step = max(1, count // 65_536)
        index.train(np.concatenate([vectors[::step] for vectors in chunks(file)]))
        for vectors in chunks(file):
            index.add(vectors)
        faiss.write_index(index, str(folder / "index.faiss"))

    def open(self, folder: Path) -> None:
        import faiss

        self.index = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
        self.index.nprobe = LISTS

    def search(self, query: np.ndarray) -> list[int]:
        return self.index.search(query[None], TOP_K)[1][0].tolist()


class USearch:
    """USearch: HNSW over float16, mapped (`view`)."""

    def build(self, folder: Path, file: Path) -> None:
        from usearch.index import Index

        index, first = Index(ndim=DIMENSION, metric="ip", dtype="f16"), 0
        for vectors in chunks(file):
            index.add(np.arange(first, first + len(vectors)), vectors, threads=1)
            first += len(vectors)
        index.save(str(folder / "index.usearch"))

    def open(self, folder: Path) -> None:
        from usearch.index import Index

        self.index = Index.restore(str(folder / "index.usearch"), view=True)

    def search(self, query: np.ndarray) -> list[int]:
        return self.index.search(query, TOP_K, threads=1).keys.tolist()


class LanceDB:
    """LanceDB: IVF with 8-bit codes over float16 vectors, candidates ordered by these."""

    def build(self, folder: Path, file: Path) -> None:
        import lancedb
        import pyarrow as pa

        schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float16(), DIMENSION))])

        def batches() -> Iterator[Any]:
            first = 0
            for vectors in chunks(file):
                values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), DIMENSION)
                yield pa.RecordBatch.from_arrays([pa.array(range(first, first + len(vectors))), values], schema=schema)
                first += len(vectors)

        table = lancedb.connect(str(folder)).create_table("t", batches(), schema=schema)
        count = file.stat().st_size // (4 * DIMENSION)
        table.create_index(
            metric="dot", vector_column_name="vector", index_type="IVF_SQ", num_partitions=max(1, count // 1024)
        )

    def open(self, folder: Path) -> None:
        import lancedb

        self.table = lancedb.connect(str(folder)).open_table("t")

    def search(self, query: np.ndarray) -> list[int]:
        search = self.table.search(query.astype(np.float16)).distance_type("dot").nprobes(LISTS).refine_factor(4)
        return search.select(["id"]).limit(TOP_K).to_arrow()["id"].to_pylist()


STORES: dict[str, type] = {"ava": Ava, "faiss": Faiss, "lancedb": LanceDB, "usearch": USearch}
LIBRARIES = {"ava": "faiss", "faiss": "faiss", "lancedb": "lancedb", "usearch": "usearch.index"}


def peak_mb() -> float:
    """The most memory that this process had so far, mapped files among it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure_build(name: str, folder: Path, file: Path) -> dict[str, float]:
    import_module(LIBRARIES[name])
    before, start = peak_mb(), time.perf_counter()
    STORES[name]().build(folder, file)
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_mb() - before}


def measure_queries(name: str, folder: Path, file: Path) -> dict[str, Any]:
    import_module(LIBRARIES[name])
    queries = next(drawn(QUERIES, seed=2))
    before, start = peak_mb(), time.perf_counter()
    store = STORES[name]()
    store.open(folder)
    opened, times, found = time.perf_counter() - start, [], []
    for query in queries:
        start = time.perf_counter()
        found.append(store.search(query))
        times.append(1000 * (time.perf_counter() - start))
    p50, p99 = np.percentile(times, [50, 99])
    return {"open_ms": 1000 * opened, "p50": p50, "p99": p99, "peak_mb": peak_mb() - before, "found": found}


def in_a_process(task: str, name: str, folder: Path, file: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.retrieval_stores", "--task", task, name, str(folder), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ONE_THREAD)
    if done.returncode:
        raise SystemExit(f"{name}: {task} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def digest(folder: Path) -> str:
    state = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        state.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return state.hexdigest()


def measure(name: str, file: Path, expected: list[list[int]], folder: Path, twice: bool) -> dict[str, Any]:
    built = [folder / f"{name}-{number}" for number in range(1 + twice)]
    for path in built:
        path.mkdir()
    costs = [in_a_process("build", name, path, file) for path in built]
    asked = in_a_process("queries", name, built[0], file)
    hits = sum(len(set(found) & set(right)) for found, right in zip(asked.pop("found"), expected, strict=True))
    return {
        "store": name,
        "recall@10": hits / (TOP_K * len(expected)),
        "query p50 ms": asked["p50"],
        "p99 ms": asked["p99"],
        "open ms": asked["open_ms"],
        "query MB": asked["peak_mb"],
        "built/s": file.stat().st_size / (4 * DIMENSION) / costs[0]["seconds"],
        "build MB": costs[0]["peak_mb"],
        "disk MB": sum(path.stat().st_size for path in built[0].rglob("*") if path.is_file()) / 2**20,
        "same bytes": digest(built[0]) == digest(built[1]) if twice else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--stores", default=",".join(STORES))
    parser.add_argument("--once", action="store_true", help="build once, without looking whether bytes repeat")
    parser.add_argument("--folder", type=Path, help="where stores are built; by default a temporary folder")
    parser.add_argument("--task", nargs=4, metavar=("TASK", "STORE", "FOLDER", "FILE"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.task:
        task, name, folder, file = flags.task
        print(json.dumps({"build": measure_build, "queries": measure_queries}[task](name, Path(folder), Path(file))))
        return
    with tempfile.TemporaryDirectory(dir=flags.folder) as name:
        file = Path(name) / "vectors.f32"
        with file.open("wb") as opened:
            for vectors in drawn(flags.passages, seed=1):
                opened.write(vectors.data)
        expected = nearest(file, next(drawn(QUERIES, seed=2)))
        for number, store in enumerate(flags.stores.split(",")):
            row = measure(store, file, expected, Path(name), not flags.once)
            if not number:
                print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}")
            cells = (f"{cell:,.3g}" if isinstance(cell, float) and cell < 100 else cell for cell in row.values())
            print("|", " | ".join(f"{c:,.0f}" if isinstance(c, float) else str(c) for c in cells), "|", flush=True)


if __name__ == "__main__":
    main()
