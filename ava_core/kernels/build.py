"""Compiles the native kernels: `python -m ava_core.kernels.build`. Installing the package does it too.

They are plain C functions, called through ctypes, so that no header of Python or torch is needed and one build serves
every version of both. OpenMP's symbols are left undefined at link time: torch has loaded its own copy, and a second one
in the process would keep a second set of threads spinning.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
FLAGS = ["-std=c++17", "-O3", "-march=x86-64-v4", "-mavx512bf16", "-fopenmp", "-fPIC", "-Wno-ignored-attributes"]


def library_path() -> Path:
    """Where the library of these very sources lies: a digest in its name keeps an older build from being loaded."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sorted(SOURCES.iterdir()):
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
        runs = [
            subprocess.Popen(  # a compiler from PATH, our own sources
                [compiler, *FLAGS, "-c", str(source), "-o", str(Path(folder) / f"{source.stem}.o")],
                stderr=subprocess.PIPE,
                text=True,
            )
            for source in sorted(SOURCES.glob("*.cpp"))
        ]
        faults = [run.communicate()[1] for run in runs]
        if any(run.returncode for run in runs):
            return "the compiler refused: " + next(f for f, r in zip(faults, runs, strict=True) if r.returncode)[:500]
        built = Path(folder) / library.name
        objects = [str(path) for path in Path(folder).glob("*.o")]
        link = subprocess.run(
            [compiler, "-shared", "-o", str(built), *objects], capture_output=True, text=True, check=False
        )
        if link.returncode:
            return f"the linker refused: {link.stderr[:500]}"
        for old in library.parent.glob("_native-*.so"):
            old.unlink()
        built.replace(library)
    return None


if __name__ == "__main__":
    fault = compile_kernels()
    if fault:
        sys.exit(f"ava_core.kernels.build: {fault}; everything runs without the kernels, more slowly")
