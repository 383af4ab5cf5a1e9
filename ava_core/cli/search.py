"""`ava search`: look something up in an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ava_core.cli.looking_up import EmbeddingModel, Labels, Mode, TopK, require_mode

if TYPE_CHECKING:
    from ava_core.retrieval.retriever import Found


def search(
    query: Annotated[str, typer.Argument(help="A question, or words.")],
    index: Annotated[Path, typer.Option(help="Output folder of `ava index`.")],
    top_k: TopK = 5,
    mode: Mode = None,
    label: Labels = None,
    model: EmbeddingModel = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON per passage.")] = False,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0: all that it may use.")] = 0,
) -> None:
    """Look something up in an index: passages go to standard output, the best first, each with its source."""
    from ava_core.retrieval.retriever import Retriever, require_query
    from ava_core.runtime import logs

    logs.configure()
    searched = require_mode(mode, "--mode")
    require_query(query)
    retriever = Retriever.open(index, mode=searched, model=model, threads=threads)
    found = retriever.search(query, top_k, mode=searched, labels=label or ())
    if as_json:
        for one in found:
            print(json.dumps(one.as_json(), ensure_ascii=False))
        return
    print("\n\n".join(_shown(number, one) for number, one in enumerate(found, 1)) or "nothing found")


def _shown(number: int, found: Found) -> str:
    from ava_core.errors import one_line
    from ava_core.retrieval.placing import clean

    passage, hit = found.passage, found.hit
    ranks = [f"{way} {rank}" for way, rank in (("words", hit.lexical_rank), ("meaning", hit.dense_rank)) if rank]
    place = f"{passage.document} {passage.start}-{passage.end}"
    title = " | ".join(part for part in (place, passage.heading, f"score {hit.score:.4g}", ", ".join(ranks)) if part)
    body = "\n".join(f"    {line}" for line in clean(passage.text).splitlines())
    return f"{number}. {one_line(title)}\n{body}"
