"""`hub: NAME`: a data set that `datasets` loads, from the Hugging Face Hub or from a local folder.

The digest covers the name and the commit that was read; of a folder, the names and bytes of its files. `datasets`
follows every link, so all links of a folder are checked before, as `links.py` says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ava_core.config.data import LocatedSource
from ava_core.data.corpora import digest_files
from ava_core.data.sources.formats import Row
from ava_core.data.sources.links import files_to_read
from ava_core.data.sources.source import Document, Source, document_of_row, missing_field
from ava_core.errors import AvaError, first_line


@dataclass(frozen=True)
class HubSource:
    """A data set that `datasets` loads by name, from the Hugging Face Hub or from a local folder."""

    config: LocatedSource
    license: str | None = None
    language: str | None = None
    size: int = 0

    @property
    def name(self) -> str:
        return Path(self.config.hub or "").name if self._local else f"{self.config.hub} (split {self.config.split})"

    @property
    def _local(self) -> Path | None:
        folder = Path(self.config.hub or "")
        return folder if folder.is_dir() else None

    def documents(self) -> Iterator[Document]:
        column = self.config.column
        for row in self.rows(column):
            yield document_of_row(row.values[column], row.name, column)

    def rows(self, column: str | None = None) -> Iterator[Row]:
        """The records, which all have `column` if one is named; raises as `documents`."""
        from datasets import load_dataset

        config = self.config
        try:
            rows: Any = load_dataset(
                config.hub, split=config.split, revision=config.revision, streaming=config.streaming
            )
        except Exception as error:
            raise _hub_error(config, error) from error
        if column is not None and rows.column_names is not None and column not in rows.column_names:
            raise missing_field(f"hub {config.hub}", column, rows.column_names)
        for number, row in enumerate(rows, start=1):
            if column is not None and column not in row:
                raise missing_field(f"hub {config.hub}: row {number}", column, row)
            yield Row(f"{config.split}:{number}", row)

    def split_by_file(self) -> list[Source]:
        return [self]

    def digest(self) -> str:
        if self._local:
            return digest_files(self._local, files_to_read(self._local))
        return hashlib.sha256(f"{self.config.hub}@{self._commit()}".encode()).hexdigest()

    def _commit(self) -> str:
        """The commit that the revision stands for: a branch or tag may move, so its name can't tell what was read."""
        if re.fullmatch(r"[0-9a-f]{40}", self.config.revision or ""):
            return str(self.config.revision)
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(str(self.config.hub), revision=self.config.revision, timeout=30).sha)
        except Exception as error:
            raise _hub_error(self.config, error) from error


def open_source(config: LocatedSource, separator: str | None, data: Path | None) -> HubSource:
    """The data set that `config.hub` names; it isn't asked for yet.

    Raises:
        AvaError: a local folder holds a link that isn't followed.
    """
    if Path(str(config.hub)).is_dir():
        files_to_read(Path(str(config.hub)))
    return HubSource(config)


def _hub_error(config: LocatedSource, error: Exception) -> AvaError:
    reason = first_line(error)
    dataset = f"{config.hub}, split {config.split}" + (f", revision {config.revision}" if config.revision else "")
    return AvaError(
        f"hub {dataset}: can't be loaded ({reason}): check the name and the network, or give files with `path`"
    )
