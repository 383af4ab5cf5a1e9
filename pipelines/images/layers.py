"""What the layers of an image hold, read from `docker save`: sizes, traces of the build's secrets, packages."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ava_core.errors import AvaError

DPKG_STATUS = "var/lib/dpkg/status"
SITE_PACKAGES = "site-packages"
METADATA = re.compile(r"/(?:site|dist)-packages/[^/]+\.dist-info/METADATA$")
"""Not below a package: copies of other packages that it carries are part of it."""


@dataclass(frozen=True, kw_only=True)
class LayerFile:
    """A file of a layer.

    Attributes:
        layer: number of the layer, from 0.
        path: without a leading slash.
        content: its bytes; for a link, the path that it points to.
    """

    layer: int
    path: str
    content: bytes


@dataclass(kw_only=True)
class Contents:
    """What the layers of an image hold.

    Attributes:
        sizes: bytes by part: a Python package, Debian's files, and so on.
        leaks: where a trace was found: what it is, layer and file.
        python_packages: the METADATA of each installed Python distribution.
        dpkg_status: dpkg's list of installed packages; empty if there is none.
    """

    sizes: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)
    python_packages: list[str] = field(default_factory=list)
    dpkg_status: str = ""


def read(image: str, traces: Mapping[str, bytes]) -> Contents:
    """Read all layers of an image once.

    Args:
        image: name or id.
        traces: bytes that no layer may hold, by what they are.
    """
    contents = Contents()
    for file in files(image):
        contents.sizes[part_of(file.path)] += len(file.content)
        contents.leaks += [
            f"{what}: layer {file.layer}, {file.path}"
            for what, trace in traces.items()
            if trace in file.content or trace in file.path.encode()
        ]
        if METADATA.search(file.path):
            contents.python_packages.append(file.content.decode(errors="replace"))
        elif file.path == DPKG_STATUS:
            contents.dpkg_status = file.content.decode(errors="replace")
    return contents


def files(image: str) -> Iterator[LayerFile]:
    """Every file and link of every layer, in the layers' order; those that a later layer hides as well.

    Raises:
        AvaError: the engine can't save the image.
    """
    with tempfile.TemporaryFile() as archive:
        done = subprocess.run(["docker", "save", image], stdout=archive, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise AvaError(f"docker save {image}: {done.stderr.decode(errors='replace').strip()}")
        archive.seek(0)
        with tarfile.open(fileobj=archive) as outer:
            for number, name in enumerate(json.loads(_bytes(outer, "manifest.json"))[0]["Layers"]):
                stream = outer.extractfile(name)
                assert stream is not None  # layers are files
                with tarfile.open(fileobj=stream, mode="r:*") as layer:
                    for member in layer:
                        path = str(PurePosixPath(member.name))
                        if member.isreg():
                            opened = layer.extractfile(member)
                            yield LayerFile(layer=number, path=path, content=opened.read() if opened else b"")
                        elif member.issym():
                            yield LayerFile(layer=number, path=path, content=member.linkname.encode())


def part_of(path: str) -> str:
    """The part of the image that a file's size counts for: the package in the environment, else the top of the tree."""
    parts = PurePosixPath(path).parts
    if SITE_PACKAGES in parts[:-1]:
        name = parts[parts.index(SITE_PACKAGES) + 1].removesuffix(".libs").removesuffix(".py")
        return f"python: {name.partition('-')[0]}" if name.endswith(".dist-info") else f"python: {name}"
    if parts[:1] == ("usr",) and len(parts) > 2:
        return "debian: usr/" + ("lib" if parts[1] in ("lib", "lib64", "libexec") else parts[1])
    return "/".join(parts[:2]) if parts[0] == "opt" else f"debian: {parts[0]}"


def _bytes(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    return file.read() if file else b""
