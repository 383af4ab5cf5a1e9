"""What can be said of docker/Dockerfile without building it."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from components.image import IMAGE

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
SENT = [
    line.removeprefix("!")
    for line in (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    if line.startswith("!")
]


def stage(name: str) -> str:
    return re.split(rf"^FROM .* AS {name}$", DOCKERFILE, flags=re.MULTILINE)[1].split("\nFROM ")[0]


def test_components_name_the_last_stage():
    stages = re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, flags=re.MULTILINE)
    assert f"ava-moe:{stages[-1]}" == IMAGE


def test_files_that_it_copies_exist_and_are_sent_to_the_builder():
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"pyproject.toml", "constraints.txt", "ava_core", "configs"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in SENT), source


def test_nothing_that_the_wheel_is_made_from_is_held_back():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*build["packages"], *build["force-include"], project["project"]["readme"]]
    assert set(needed) <= set(SENT)


def test_last_stage_has_no_compiler_and_runs_as_nobody_special():
    last = stage("cpu")
    assert not re.search(r"\b(g\+\+|gcc|build-essential|python3-dev)\b", last)
    assert re.search(r"^USER (?!0|root)\d+", last, re.MULTILINE)
    assert "ENTRYPOINT [" not in last


def test_secrets_are_mounted_and_never_copied_or_set():
    for secret in ("pip_conf", "apt_conf", "ca"):
        assert f"--mount=type=secret,id={secret}" in DOCKERFILE
        assert not re.search(rf"^(COPY|ADD|ENV|ARG) .*\b{secret}\b", DOCKERFILE, re.MULTILINE)


def test_versions_that_it_reads_from_the_constraints_are_pinned_there():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {"torch", "deepspeed"} <= pins.keys()
    assert "+" not in pins["torch"], "the Dockerfile adds +cpu itself"
