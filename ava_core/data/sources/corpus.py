"""`corpus: NAME`: an embedded corpus, in its folder below the one given with --data.

Its digest is the one that `ava_core.data.corpora` has for it: whatever a link in its place leads to has these bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ava_core.config.data import LocatedSource
from ava_core.data.corpora import CORPORA, Corpus
from ava_core.data.sources.formats import Reading
from ava_core.data.sources.path import FileSource
from ava_core.errors import AvaError


@dataclass(frozen=True)
class CorpusSource(FileSource):
    """Files of `corpus`."""

    corpus: Corpus

    @property
    def license(self) -> str:
        return self.corpus.license

    @property
    def language(self) -> str:
        return self.corpus.language

    def digest(self) -> str:
        return self.corpus.digest


def open_source(config: LocatedSource, separator: str | None, data: Path | None) -> CorpusSource:
    """The corpus that `config.corpus` names, after every byte was checked.

    Raises:
        AvaError: there is no --data, or the corpus was not fetched.
        IntegrityError: its folder holds something else.
    """
    corpus = CORPORA[str(config.corpus)]
    if data is None:
        raise AvaError(f"corpus {corpus.name}: --data is missing: run `make data`, then give --data data/raw")
    root = data / corpus.name
    reading = Reading(format="markdown", text_field=config.column, separator=separator)
    return CorpusSource(corpus.name, root, tuple(corpus.verify(root)), reading, corpus)
