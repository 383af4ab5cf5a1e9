"""`ava tasks`: our own benchmarks as files that lm-eval runs on any model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ava_core.config.tasks import BUILT_IN


def tasks(
    shards: Annotated[Path, typer.Option(help="Output folder of `ava preprocess`.")],
    output: Annotated[Path, typer.Option(help="Folder to write a YAML file and its questions into for each task.")],
    split: Annotated[Literal["validation", "test"], typer.Option(help="Split that they are made from.")] = "test",
    limit: Annotated[int, typer.Option(min=1, help="Questions of each task, at most.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the questions.")] = 1234,
) -> None:
    """Write swapped_words and next_line, made from held-out text, in lm-eval's form."""
    from ava_core.data.shards import ShardedSplit
    from ava_core.data.tokenizer import decode_documents, load_tokenizer
    from ava_core.errors import ConfigError
    from ava_core.files import whole_folder
    from ava_core.runtime import logs
    from ava_core.runtime.manifest import verified
    from ava_core.tasks.files import write_task
    from ava_core.tasks.held_out import make_task

    logs.configure()
    if output.exists():
        raise ConfigError(f"--output {output}: exists: name a new folder")
    with verified(shards):
        documents = decode_documents(ShardedSplit.open(shards, split), load_tokenizer(shards / "tokenizer"))
    made = [make_task(name, documents, seed=seed, count=limit, where="ava tasks") for name in BUILT_IN]
    with whole_folder(output) as folder:
        for task in made:
            write_task(task, seed, folder)
    for task in made:
        print(f"wrote {output / task.name}.yaml: {len(task.items)} questions from {task.form}")
