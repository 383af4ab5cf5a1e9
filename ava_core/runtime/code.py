"""The code that can change a step's result, found by following imports from the step's function.

A module counts when the step may import it: at its top, inside a function, by its name in a string, or as a parent of
another. A string that ends at a dot, as before a name that is put together, means all modules of that package. With a
package come the files in it that are no modules, such as the native kernels' sources. `boundary` says what doesn't
count, `source` what counts of a file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ava_core.files import write_whole
from ava_core.runtime.boundary import CONTRACT, is_outside
from ava_core.runtime.digests import digest_file, digest_value
from ava_core.runtime.source import ROOT, Import, Source, read_source
from ava_core.steps.spec import StepSpec

PACKAGE = Path(__file__).resolve().parents[1]
NOT_READ = {"pyc", "so", "pth"}
"""Endings of files beside modules that no step reads: compiled, or for the environment."""
FROM_MODEL = "from_model"
"""The module of the commands that hands over to every training that begins from a model."""
CACHE = "code.json"
LAUNCH = f"{ROOT}.launching.launch"
"""What calls the training of every step that trains, and halves its micro-batch where memory runs out."""
LARGEST_CACHE = 2_000
"""Files in the cache past which it is begun anew; a checkout has some 300, and each change of one adds one."""


@dataclass(frozen=True)
class Code:
    """What of Ava can change a step's result.

    Attributes:
        files: digest of what counts of each file, by the name of the module or the path below the package.
    """

    files: dict[str, str]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all of it, and the version of the step contract."""
        return digest_value({"contract": CONTRACT, "files": self.files})

    @property
    def runs_kernels(self) -> bool:
        """Whether AVA_KERNELS can change the result."""
        return f"{ROOT}.kernels.library" in self.files

    @property
    def runs_graphs(self) -> bool:
        """Whether AVA_ONNX_PROVIDER can."""
        return f"{ROOT}.onnx.providers" in self.files


def code_of(spec: StepSpec, work: Path | None = None, package: Path = PACKAGE) -> Code:
    """The code of a step.

    Args:
        spec: the step.
        work: the work folder, which keeps what was read of each file, by the digest of its bytes.
        package: folder of the package to look at.
    """
    return codes_of([spec], work, package)[spec.name]


def codes_of(specs: Iterable[StepSpec], work: Path | None = None, package: Path = PACKAGE) -> dict[str, Code]:
    """The code of each step by its name, each file read once; arguments as for `code_of`."""
    reader = _Reader(package, work / CACHE if work else None)
    found = {}
    for spec in specs:
        roots = {spec.function.partition(":")[0]} | (_commands(spec) & reader.tree.modules.keys())
        if spec.training:
            roots.add(LAUNCH)
        found[spec.name] = Code(dict(sorted(_files(reader, roots))))
    reader.save()
    return found


def _commands(spec: StepSpec) -> set[str]:
    """Modules of the command, which count though they lie in a package that doesn't: they call the function. Of a
    training that is a method of another command, that one's, and what hands over for all that begin from a model."""
    names = {spec.name}
    if spec.training and any(port.name == "model" for port in spec.inputs):
        names |= {spec.words[0], FROM_MODEL}
    return {f"{ROOT}.cli.{name}" for name in names}


def _files(reader: _Reader, roots: set[str]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        known = module in roots or (module in reader.tree.modules and not is_outside(module))
        if module in seen or not known:
            continue
        seen.add(module)
        source = reader.read(module)
        yield module, source.digest
        for path in reader.tree.data.get(module, ()):
            yield path.removeprefix(f"{reader.package}/"), reader.read_file(path).digest
        for found in source.imports:
            waiting.extend(_targets(reader, found))
        parent = module.rpartition(".")[0]
        if parent != ROOT:  # that one holds the version, which counts for those who read it
            waiting.append(parent)


def _targets(reader: _Reader, found: Import) -> Iterator[str]:
    """The modules that an import may load; a name that only passes through the boundary is followed to its home."""
    if found.name and f"{found.module}.{found.name}" in reader.tree.modules:
        yield f"{found.module}.{found.name}"
    elif found.name and is_outside(found.module) and found.module in reader.tree.modules:
        for passed in reader.read(found.module).imports:
            if passed.alias == found.name:
                yield from _targets(reader, passed)
    elif found.module.endswith("."):
        yield from (module for module in reader.tree.modules if module.startswith(found.module))
    else:
        yield found.module


@dataclass(frozen=True)
class _Tree:
    """Attributes:
    modules: file of each module.
    data: by package, the files in it, and in folders in it that are no packages, that are no modules.
    """

    modules: dict[str, str]
    data: dict[str, list[str]]


def _look_at(package: Path) -> _Tree:
    tree = _Tree({}, {})
    owners = {str(package.parent): ""}
    for folder, folders, files in os.walk(package):
        above, name = os.path.split(folder)
        owner = f"{owners[above]}.{name}".lstrip(".") if "__init__.py" in files else owners[above]
        owners[folder] = owner
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in files:
            stem, _, kind = name.rpartition(".")
            if kind == "py":
                tree.modules[owner if stem == "__init__" else f"{owner}.{stem}"] = f"{folder}/{name}"
            elif kind not in NOT_READ and not name.startswith("."):
                tree.data.setdefault(owner, []).append(f"{folder}/{name}")
    return tree


class _Reader:
    """Reads sources below a package, and each version of a file once for all runs where there is a cache."""

    def __init__(self, package: Path, cache: Path | None) -> None:
        self.package, self.tree, self._cache = package, _look_at(package), cache
        # What was read is only as good as what read it.
        self._reader = digest_file(Path(read_source.__code__.co_filename))
        self._known = _load(cache, self._reader) if cache else {}
        self._used: dict[str, Source] = {}
        self._read: dict[tuple[str, str], Source] = {}

    def read(self, module: str) -> Source:
        """A module's source."""
        path = self.tree.modules[module]
        return self.read_file(path, module if path.endswith("/__init__.py") else module.rpartition(".")[0])

    def read_file(self, path: str, package: str = "") -> Source:
        """A file's source, with the package that its relative imports count from."""
        if (path, package) not in self._read:
            content = Path(path).read_bytes()
            kind = path.rpartition(".")[2]
            key = hashlib.sha256(f"{package} {kind} ".encode() + content).hexdigest()
            if key not in self._used:
                known = self._known.get(key)
                self._used[key] = _restored(*known) if known else read_source(content, path, package)
            self._read[path, package] = self._used[key]
        return self._read[path, package]

    def save(self) -> None:
        """Keep what was read; of two processes that do so at the same time, one wins."""
        if self._cache is None or self._used.keys() <= self._known.keys():
            return
        known = {} if len(self._known) > LARGEST_CACHE else self._known
        files = known | {key: [source.digest, *source.imports] for key, source in self._used.items()}
        with suppress(OSError):  # no room, or not ours to write: it is read anew next time
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._cache, json.dumps({"reader": self._reader, "files": files}))


def _restored(digest: str, *imports: list[str]) -> Source:
    return Source(digest, tuple(map(Import._make, imports)))


def _load(cache: Path, reader: str) -> dict[str, list[Any]]:
    """What earlier runs have read, as JSON has it; nothing of a damaged file, or of another reader."""
    try:
        kept = json.loads(cache.read_bytes())
        return dict(kept["files"]) if kept["reader"] == reader else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
