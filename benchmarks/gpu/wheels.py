"""Collects the wheels that a GPU machine without a package index lacks, where it has PyTorch and Transformers.

Usage: python -m benchmarks.gpu.wheels [--to wheels] [--python 3.12] [--without NAME]

The versions are those of requirements/, each file checked against its hash there; DeepSpeed, which is published as a
source only, is built here, without compiled operators: Ava uses none on a GPU. Take the folder along, and there:

    python3 -m pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site python3 -m benchmarks.gpu

Where onnxruntime-gpu is, `--without onnxruntime`: this one would hide it, and has no provider of CUDA's.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
READY = (
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
    *("datasets", "dill", "multiprocess"),
    *("hjson", "llguidance", "onnxruntime"),
)
"""What has wheels: for settings, for shards, what DeepSpeed imports, what samples are decoded with, and an ONNX Runtime
that loads the fused graph."""
BUILT = ("deepspeed",)
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(17, 36)), "manylinux2014_x86_64")
"""Up to the C library of Debian 12 and Ubuntu 22.04; pip takes the names one by one."""


def pinned(file: str, names: Sequence[str]) -> str:
    """The entries of these packages in a file of requirements/, with their hashes.

    Raises:
        SystemExit: it lacks one.
    """
    text = (REQUIREMENTS / file).read_text(encoding="utf-8")
    found = []
    for name in names:
        entry = re.search(rf"^{re.escape(name)}==.*\n(?:[ \t].*\n)*", text, re.MULTILINE)
        if entry is None:
            raise SystemExit(f"{name}: isn't in requirements/{file}: make lock")
        found.append(entry[0])
    return "".join(found)


def collect(folder: Path, python: str, without: Sequence[str] = ()) -> list[Path]:
    """The wheels, downloaded or built into `folder`, but for those `without`.

    Raises:
        SystemExit: pip failed; it has said why.
    """
    target = [word for platform in PLATFORMS for word in ("--platform", platform)]
    target += ["--python-version", python, "--implementation", "cp", "--only-binary", ":all:"]
    ready = [name for name in READY if name not in without]
    _pip("download", "steps.txt", ready, ["--dest", str(folder), *target])
    _pip("wheel", "steps-source.txt", BUILT, ["--wheel-dir", str(folder), "--no-build-isolation", "--use-pep517"])
    return sorted(folder.glob("*.whl"))


def _pip(command: str, file: str, names: Sequence[str], options: Sequence[str]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write(pinned(file, names))
        wanted.flush()
        words = [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", "--require-hashes", *options]
        environment = {**os.environ, "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run([*words, "--requirement", wanted.name], env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"pip {command} of {', '.join(names)} ended with {done.returncode}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect and list them."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.gpu.wheels", description=__doc__.split("\n")[0])
    flags.add_argument("--to", type=Path, default=Path("wheels"), help="folder (default: %(default)s)")
    flags.add_argument("--python", default="3.12", help="version of Python there (default: %(default)s)")
    flags.add_argument("--without", action="append", default=[], choices=READY, metavar="NAME", help="leave one out")
    given = flags.parse_args(arguments)
    given.to.mkdir(parents=True, exist_ok=True)
    wheels = collect(given.to, given.python, given.without)
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:6.2f} MiB  {wheel.name}")
    print(f"{sum(wheel.stat().st_size for wheel in wheels) / 2**20:6.2f} MiB in {given.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
