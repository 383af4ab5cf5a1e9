"""Write the files of this folder: every package that Ava is installed with, by version and by hash.

Usage: python requirements/lock.py [--upgrade all | NAME...]     (make lock UPGRADE=...)

Versions stay what they are unless a requirement of pyproject.toml asks for more or `--upgrade` is given. The hashes are
those that the package index names for all files of a version, so one set of files serves every Python and processor
that Ava supports. Which index is asked is uv's setting, as usual (UV_DEFAULT_INDEX); no address is written down.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from install import CPU_INDEX, FOLDER, PYTHONS, blocks, name_of

ROOT = FOLDER.parent
COMPOSE = ("mlflow", "psycopg2-binary", "boto3")
"""What the server of docker/compose.yaml consists of."""
BACKENDS = ("editables", "setuptools")
"""What building needs beside pyproject.toml's backend: for an editable install of Ava, and for the sources below."""
SOURCES = (
    "antlr4-python3-runtime",
    "cellpylib",
    "deepspeed",
    "kfp-server-api",
    "pycosat",
    "rouge-score",
    "sqlitedict",
    "word2number",
    "zss",
)
"""Published without wheels: building them runs their own code, so they have files of their own."""
IN_STEPS = ("cluster", "optimizers", "serve", "tasks")
"""Extras that a step may need."""
CUDA = re.compile(r"cuda-|nvidia-|triton$")
"""What only PyTorch's CUDA build needs."""
OTHER_SYSTEMS = re.compile(r"sys_platform == '(win32|darwin|emscripten)'")
CPU_PLATFORM = "manylinux_2_28_x86_64"


def main(arguments: Sequence[str] | None = None) -> None:
    """Resolve everything at once, then write each set's part of it."""
    parser = argparse.ArgumentParser(prog="python requirements/lock.py", description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", nargs="+", metavar="NAME", help="take newer versions of these, or of `all`")
    upgrade = parser.parse_args(arguments).upgrade or ()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    backends = [*project["build-system"]["requires"], *BACKENDS]
    wanted = [*project["project"]["dependencies"], *_flatten(extras, "dev"), *backends]
    before = "".join(path.read_text(encoding="utf-8") for path in _locked()).replace("===", "==")
    with tempfile.TemporaryDirectory(prefix="ava-lock-") as folder:
        everything = resolve(wanted, Path(folder), prefer=before, upgrade=upgrade)
        steps = resolve(
            [*project["project"]["dependencies"], *(item for extra in IN_STEPS for item in extras[extra])],
            Path(folder),
            within=everything,
        )
        compose = resolve(COMPOSE, Path(folder), within=everything)
        build = resolve(backends, Path(folder), within=everything)
    torch = {name for name in everything if name == "torch" or CUDA.match(name)}
    steps = {name: block for name, block in steps.items() if name not in torch}
    rest = {name: block for name, block in everything.items() if name not in torch and name not in steps}
    write("build", build, "What builds Ava and the packages that come as sources")
    write("steps", steps, "What a step of the pipeline runs with, but for PyTorch")
    write("dev", rest, "What a checkout has beside steps.txt")
    write("compose", compose, "MLflow's server in docker/compose.yaml")
    # `===`, for a CPU build that an index offers counts as the same version.
    ordinary = {name: everything[name] for name in sorted(torch)}
    ordinary["torch"] = ordinary["torch"].replace("==", "===", 1)
    write("torch", ordinary, "PyTorch with the libraries of CUDA that it needs")
    write_cpu_build(everything["torch"])


def resolve(
    requirements: Sequence[str],
    folder: Path,
    *,
    within: dict[str, str] | None = None,
    prefer: str = "",
    upgrade: Sequence[str] = (),
) -> dict[str, str]:
    """What uv makes of requirements for Linux, from the oldest Python on: entries of a requirements file by name.

    Args:
        requirements: as pyproject.toml has them.
        folder: for files on the way.
        within: versions that are fixed; entries by name.
        prefer: a requirements file whose versions stay where they fit.
        upgrade: names that `prefer` doesn't hold for; `all`: it holds for none.
    """
    asked, result, fixed = folder / "asked.in", folder / "result.txt", folder / "fixed.txt"
    asked.write_text("".join(f"{requirement}\n" for requirement in requirements), encoding="utf-8")
    result.write_text(prefer, encoding="utf-8")
    fixed.write_text("".join((within or {}).values()), encoding="utf-8")
    command = [shutil.which("uv") or str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet"]
    command += ["--universal", "--python-version", PYTHONS[0]]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--constraints", str(fixed)]
    command += ["--upgrade" if name == "all" else f"--upgrade-package={name}" for name in upgrade]
    done = subprocess.run([*command, str(asked), "--output-file", str(result)], check=False)
    if done.returncode:
        sys.exit(f"lock: uv pip compile: exit code {done.returncode}")
    found = blocks(result.read_text(encoding="utf-8"))
    return {name_of(block): block for block in found if not OTHER_SYSTEMS.search(block)}


def write(name: str, entries: dict[str, str], what: str) -> None:
    """Write a set's files: wheels, and apart from them what comes as sources."""
    for suffix, chosen, note in (
        ("", {key: value for key, value in entries.items() if key not in SOURCES}, "; wheels"),
        ("-source", {key: value for key, value in entries.items() if key in SOURCES}, "; sources"),
    ):
        if chosen:
            head = f"# {what}{note}. Written by `make lock`.\n"
            (FOLDER / f"{name}{suffix}.txt").write_text(head + "".join(chosen.values()), encoding="utf-8")


def write_cpu_build(block: str) -> None:
    """Write torch-cpu.txt: the CPU build's hash for each Python, as an index gives it now or as it was recorded."""
    version = re.match(r"torch==(\S+)", block)[1] + "+cpu"
    path = FOLDER / "torch-cpu.txt"
    known = {}
    for entry in blocks(path.read_text(encoding="utf-8")) if path.exists() else []:
        if entry.startswith(f"torch=={version} ") and (python := re.search(r"python_version == '([\d.]+)'", entry)):
            known[python[1]] = entry
    entries = []
    for python in PYTHONS:
        digest = _cpu_digest(version, python)
        if digest:
            marker = f"python_version == '{python}' and platform_machine == 'x86_64'"
            entries.append(f"torch=={version} ; {marker} \\\n    --hash=sha256:{digest}\n")
        elif python in known:
            entries.append(known[python])
        else:
            print(f"lock: torch {version} for Python {python}: no index gives its hash: torch.txt is used there")
    head = "# PyTorch without CUDA, from an index of its own (requirements/install.py). Written by `make lock`.\n"
    path.write_text(head + "".join(entries), encoding="utf-8")


def _cpu_digest(version: str, python: str) -> str | None:
    """The SHA-256 of the CPU build's wheel, from pip's own index or from PyTorch's; None if neither has it."""
    for index in ([], ["--index-url", CPU_INDEX, "--retries", "0"]):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", "--no-deps"]
        command += ["--target", "unused", "--only-binary", ":all:", "--ignore-installed"]
        command += ["--python-version", python, "--platform", CPU_PLATFORM, *index, f"torch=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            (found,) = json.loads(done.stdout)["install"]
            download = found["download_info"]
            digest = download.get("archive_info", {}).get("hashes", {}).get("sha256")
            if digest is None and download["url"].startswith("file:"):
                with Path(unquote(urlsplit(download["url"]).path)).open("rb") as wheel:
                    digest = hashlib.file_digest(wheel, "sha256").hexdigest()
            return digest
    return None


def _locked() -> list[Path]:
    return [path for path in sorted(FOLDER.glob("*.txt")) if not path.name.startswith("torch-cpu")]


def _flatten(extras: dict[str, list[str]], name: str) -> list[str]:
    """The requirements of an extra, with those of the extras (`ava-moe[NAME]`) that it names."""
    found = []
    for requirement in extras[name]:
        if inner := re.fullmatch(r"ava-moe\[(.+)\]", requirement):
            found += [item for part in inner[1].split(",") for item in _flatten(extras, part)]
        else:
            found.append(requirement)
    return found


if __name__ == "__main__":
    main()
