"""How well an index finds what it should: both ways to search together against each alone.

Usage: python -m benchmarks.retrieval_quality [--shards outputs/shards] [--folder DIR] [--count 400]

Two sets, each an index with MiniLM's vectors:

- `plays`: the training split of the shards; questions are lines of which two words in five are left out, and stage
  directions (`ava_core.retrieval.questions`).
- `docstrings`: of the functions and classes of Python's standard library. A question is the first sentence of a
  docstring, which its document lacks: it has to be found by the rest. Of another kind of text, and written by many.

Lexical search alone is BM25 as bm25s scores it, dense search alone the vectors without it.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ava_core.config.hardware import usable_cores
from ava_core.config.retrieval import RetrievalConfig
from ava_core.progress import Progress
from ava_core.retrieval.build import build_index
from ava_core.retrieval.measuring import measure
from ava_core.retrieval.questions import Question, make_questions
from ava_core.retrieval.retriever import Retriever

FEWEST_WORDS, LONGEST_QUESTION = 40, 200
SEED = 0


def docstrings() -> Iterator[tuple[str, str, str]]:
    """Name, first sentence, and the rest of each docstring of the standard library with much more than a sentence."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root)
        if {"test", "tests", "idlelib", "site-packages"} & set(module.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                first, _, rest = text.partition("\n\n")
                question = " ".join(first.split())
                if len(rest.split()) >= FEWEST_WORDS and 20 <= len(question) <= LONGEST_QUESTION:
                    yield f"{module.with_suffix('')}.{node.name}:{node.lineno}", question, rest


def index_of(config: RetrievalConfig, shards: Path, data: Path | None, folder: Path) -> Path:
    """The index in `folder`, built where there is none."""
    output, state = folder / "index", folder / "state"
    if not (output / "index.json").is_file():
        for path in (output, state):
            path.mkdir(parents=True, exist_ok=True)
        threads = usable_cores()
        built = build_index(
            config,
            shards=shards,
            data=data,
            model=None,
            previous=None,
            output=output,
            state=state,
            threads=threads,
            progress=Progress(quiet=True),
        )
        speed = built.timings["passages_per_second"]
        print(f"{folder.name}: {built.metrics['passages']:,} passages, {speed:.0f} per second")
    return output


def docstring_set(shards: Path, folder: Path, count: int) -> tuple[Path, list[Question]]:
    """The index of the docstrings without their first sentences, and these as questions."""
    rows = list(docstrings())
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "docstrings.jsonl"
    source.write_text("".join(f"{json.dumps({'text': rest})}\n" for _, _, rest in rows))
    config = RetrievalConfig.model_validate({"sources": [{"path": str(source), "format": "jsonl"}]})
    index = index_of(config, shards, folder, folder)
    names = list(dict.fromkeys(passage.document for passage in Retriever.open(index, mode="lexical").index.passages))
    asked = sorted(random.Random(SEED).sample(range(len(rows)), min(count, len(rows))))  # noqa: S311
    return index, [Question(rows[number][1], "", names[number]) for number in asked]


def report(name: str, index: Path, questions: list[Question]) -> dict[str, dict[str, float]]:
    """Print a row for each way to search, and return the figures."""
    retriever = Retriever.open(index, threads=usable_cores())
    results = measure(retriever, questions)
    for one in results:
        figures = "  ".join(f"{key} {value:.3f}" for key, value in one.figures.items())
        times = "  ".join(f"{key.removesuffix('_ms')} {value:.1f} ms" for key, value in one.timings.items())
        print(f"{name:<11}{one.mode:<9}{figures}  {times}")
    return {one.mode: {**one.figures, **one.timings} for one in results}


def main() -> None:
    """Build what isn't there, ask, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval_quality", description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, default=Path("outputs/shards"), help="output of `ava preprocess`")
    parser.add_argument("--folder", type=Path, help="where indexes are kept; default: a temporary folder")
    parser.add_argument("--index", type=Path, help="an index of the shards that is there already")
    parser.add_argument("--count", type=int, default=400, help="questions of each set")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = flags.folder or Path(temporary)
        plays = flags.index or index_of(RetrievalConfig(), flags.shards, None, folder / "plays")
        passages = Retriever.open(plays, mode="lexical").index.passages
        figures = {"plays": report("plays", plays, make_questions(passages, flags.count, SEED))}
        index, questions = docstring_set(flags.shards, folder / "docstrings", flags.count)
        figures["docstrings"] = report("docstrings", index, questions)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
