"""Compiles the native kernels: `python -m ava_core.kernels.build`. Installing the package does it too.

They are plain C functions, called through ctypes, so that no header of Python or torch is needed and one build serves
every version of both. OpenMP's symbols are left undefined at link time: torch has loaded its own copy, and a second one
in the process would keep a second set of threads spinning.

What is under native/products is compiled once for each of `PATHS`, with the path in the functions' names; which of them
runs is chosen when the library is loaded. A compiler whose assembler doesn't know AMX builds the library without it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
FLAGS = ["-std=c++17", "-O3", "-march=x86-64-v4", "-mavx512bf16", "-fopenmp", "-fPIC", "-Wno-ignored-attributes"]
PATHS = {
    "avx512": ["-DAVA_PATH=avx512"],
    "amx": ["-DAVA_PATH=amx", "-DAVA_TILES"],
    "emulated": ["-DAVA_PATH=emulated", "-DAVA_TILES", "-DAVA_EMULATED"],
}
"""Ways to multiply matrices, and their flags. `emulated` is amx with its instructions in plain C++, so it is tested
everywhere. Named here too, for this file is also run where the rest of Ava isn't installed."""


def library_path() -> Path:
    """Where the library of these very sources lies: a digest in its name keeps an older build from being loaded."""
    digest = hashlib.sha256(repr((FLAGS, PATHS)).encode())
    for source in sorted(path for path in SOURCES.rglob("*") if path.is_file()):
        digest.update(source.read_bytes())
    return SOURCES.parent / f"_native-{digest.hexdigest()[:16]}.so"


def compile_kernels() -> str | None:
    """Compile the library, whole or not at all, and remove older ones; return why it wasn't possible, or None."""
    library = library_path()
    if library.is_file():
        return None
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the native kernels are for Linux on x86-64"
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return "no C++ compiler (g++) was found"
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        faults = _compile(compiler, Path(folder))
        without = {"amx"} if any(name.endswith("-amx") for name in faults) else set()
        if left := {name: fault for name, fault in faults.items() if name.rpartition("-")[2] not in without}:
            return "the compiler refused: " + next(iter(left.values()))[:500]
        built = Path(folder) / library.name
        objects = [str(p) for p in sorted(Path(folder).glob("*.o")) if p.stem.rpartition("-")[2] not in without]
        link = subprocess.run(
            [compiler, "-shared", "-o", str(built), *objects], capture_output=True, text=True, check=False
        )
        if link.returncode:
            return f"the linker refused: {link.stderr[:500]}"
        for old in library.parent.glob("_native-*.so"):
            old.unlink()
        built.replace(library)
    return None


def _compile(compiler: str, folder: Path) -> dict[str, str]:
    """Compile every source into an object in `folder`; what the compiler said of those that it refused, by name."""
    units: list[tuple[str, Path, list[str]]] = [(source.stem, source, []) for source in sorted(SOURCES.glob("*.cpp"))]
    for path, flags in PATHS.items():
        units += [(f"{s.stem}-{path}", s, flags) for s in sorted((SOURCES / "products").glob("*.cpp"))]

    def compile_one(unit: tuple[str, Path, list[str]]) -> str | None:
        name, source, flags = unit
        command = [compiler, *FLAGS, *flags, "-c", str(source), "-o", str(folder / f"{name}.o")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # from PATH, our own sources
        return done.stderr if done.returncode else None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        said = pool.map(compile_one, units)
        return {unit[0]: fault for unit, fault in zip(units, said, strict=True) if fault is not None}


if __name__ == "__main__":
    fault = compile_kernels()
    if fault:
        sys.exit(f"ava_core.kernels.build: {fault}; everything runs without the kernels, more slowly")
