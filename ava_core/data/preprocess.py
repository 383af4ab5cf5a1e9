"""From sources to shards: the library functions behind `ava preprocess` and `ava preprocess --part`."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.config.data import DataConfig
from ava_core.config.tokenizer import TokenizerConfig
from ava_core.data.card import describe_tokenizer, render_card
from ava_core.data.cleaned import clean_documents, read_report
from ava_core.data.durable import SECONDS, DurableFolders
from ava_core.data.shard_writing import write_splits_info
from ava_core.data.shards import SPLITS, SplitsInfo
from ava_core.data.sources import open_sources, part_of
from ava_core.data.stages import Stages, part_folder

if TYPE_CHECKING:
    from ava_core.progress import Progress


@dataclass(frozen=True)
class Preprocessed:
    """The figures of a finished run.

    Attributes:
        metrics: the same on every run.
        timings: what the clock gave; of a resumed run, the sum over all runs.
    """

    metrics: dict[str, float]
    timings: dict[str, float]


def preprocess(
    data_config: DataConfig,
    tokenizer_config: TokenizerConfig,
    *,
    data: Path | None,
    output: Path,
    state: Path,
    progress: Progress,
    tokenizer: Path | None = None,
) -> Preprocessed:
    """Clean, deduplicate, split, train the tokenizer or take a finished one, write the shards.

    Args:
        data_config: the section `data`.
        tokenizer_config: the section `tokenizer`.
        data: the folder given with --data; may be None if no source needs it.
        output: an empty folder: gets `train/ validation/ test/ splits.json dataset_dict.json tokenizer/ cleaning.json
            README.md`.
        state: survives a killed run with the same inputs and configuration.
        progress: shows progress.
        tokenizer: where the finished one lies that `tokenizer.from` names; None: one is learned.

    Raises:
        AvaError: a source is missing, empty or can't be read, too little text is left for three splits, or the finished
            tokenizer can't be used for this text.
    """
    sources = open_sources(data_config, data)
    stages = Stages(data_config, tokenizer_config, sources, DurableFolders(state), progress, tokenizer)
    if tokenizer is not None:
        _ = stages.tokenizer_folder
        stages.check_samples()
    splits = {name: stages.shards(name) for name in SPLITS}
    special = stages.special
    info = SplitsInfo(
        vocab_size=special.vocab_size,
        boundary_token_id=special.boundary,
        dtype=splits["train"].dtype,
        splits={name: split.info for name, split in splits.items()},
        padding=special.padding if special.padding != special.boundary + 1 else None,
    )
    for name, split in splits.items():
        shutil.copytree(split.folder, output / name)
    shutil.copytree(stages.tokenizer_folder, output / "tokenizer", ignore=shutil.ignore_patterns(SECONDS))
    write_splits_info(output, info)
    report = stages.cleaning_report | {"deduplication": stages.deduplication_report}
    (output / "cleaning.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    tokens = describe_tokenizer(tokenizer_config, info, None if tokenizer is None else output / "tokenizer")
    (output / "README.md").write_text(render_card(data_config, tokens, stages.sources, info, report))
    return Preprocessed(_metrics(info, report), stages.timings(int(report["bytes_in"])))


def clean_part(
    config: DataConfig, *, data: Path | None, state: Path, index: int, count: int, progress: Progress
) -> dict[str, Any]:
    """Clean one part of the corpus into the state folder; `preprocess` takes the parts up when all are there.

    Args:
        config: the section `data`.
        data: the folder given with --data; may be None if no source needs it.
        state: the state folder of the `preprocess` that follows.
        index: which part, from 1.
        count: how many there are.
        progress: shows progress.

    Returns:
        What the cleaning filters counted.

    Raises:
        AvaError: a source is missing, empty or can't be read.
    """
    sources = part_of(open_sources(config, data), index, count)
    folder = DurableFolders(state).get(
        part_folder(index, count), lambda partial: clean_documents(config, sources, partial, progress)
    )
    return read_report(folder)


def _metrics(info: SplitsInfo, report: dict[str, Any]) -> dict[str, float]:
    removed = report["deduplication"]
    metrics: dict[str, float] = {
        "documents_in": report["documents_in"],
        "documents_kept": removed["documents_out"],
        "documents_dropped": report["documents_in"] - report["documents_out"],
        "duplicates_removed": removed["exact_duplicates"] + removed["near_duplicates"],
        "vocab_size": info.vocab_size,
    }
    for name, split in info.splits.items():
        metrics[f"{name}_tokens"] = split.num_tokens
        metrics[f"{name}_bytes"] = split.num_bytes
        metrics[f"{name}_documents"] = split.num_documents
    tokens = sum(split.num_tokens for split in info.splits.values())
    metrics["bytes_per_token"] = sum(split.num_bytes for split in info.splits.values()) / tokens
    return metrics
