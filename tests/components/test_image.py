"""The image that a compiled pipeline names, and what can be said of docker/Dockerfile without building it."""

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from ava_core.errors import AvaError
from components.image import IMAGE, choose, warning

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
SENT = [
    line.removeprefix("!")
    for line in (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    if line.startswith("!")
]
ID = "sha256:" + "a" * 64
DIGEST = "registry.invalid/ava@sha256:" + "b" * 64


def stage(name: str) -> str:
    return re.split(rf"^FROM .* AS {name}$", DOCKERFILE, flags=re.MULTILINE)[1].split("\nFROM ")[0]


@pytest.fixture
def record(tmp_path):
    def write(**images) -> Path:
        path = tmp_path / "images.json"
        path.write_text(json.dumps(images))
        return path

    return write


def test_image_that_is_given_wins(record):
    assert choose("mine:1", record=record(cpu={"id": ID, "digest": DIGEST})) == "mine:1"


def test_recorded_digest_wins_over_recorded_id(record):
    assert choose(record=record(cpu={"id": ID, "digest": DIGEST})) == DIGEST
    assert choose(record=record(cpu={"id": ID, "digest": None})) == ID


def test_each_target_has_its_image(record):
    images = record(cpu={"id": ID, "digest": None}, gpu={"id": ID, "digest": DIGEST})
    assert choose(record=images) == ID
    assert choose(target="gpu", record=images) == DIGEST


def test_without_a_record_it_is_the_tag(tmp_path, record):
    assert choose(record=tmp_path / "none.json") == IMAGE
    assert choose(record=record(gpu={"id": ID, "digest": None})) == IMAGE


@pytest.mark.parametrize("text", ["", "[1]", '{"cpu": {"id": 1}}', '{"cpu": 3}'])
def test_broken_record_is_one_line_with_the_way_out(tmp_path, text):
    path = tmp_path / "images.json"
    path.write_text(text)
    with pytest.raises(AvaError, match=r"images\.json: can't be read .*make images"):
        choose(record=path)


def test_moving_tag_warns_and_a_digest_does_not():
    assert warning(DIGEST) is None
    assert "moving tag" in warning("registry.invalid/ava:latest")
    assert "moving tag" in warning(f"ava@{'sha256:' + 'a' * 63}")
    assert "this machine's Docker engine only" in warning(ID)


def test_components_name_a_target():
    stages = re.findall(r"^FROM .* AS ([\w-]+)$", DOCKERFILE, flags=re.MULTILINE)
    assert {"cpu", "gpu"} <= set(stages)
    assert f"ava-moe:{stages[-1]}" == IMAGE, "what a build without --target makes"


def test_files_that_it_copies_or_mounts_exist_and_are_sent_to_the_builder():
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    mounted = re.findall(r"type=bind,source=([^,]+),", DOCKERFILE)
    assert {"pyproject.toml", "requirements", "ava_core", "configs"} <= set(copied)
    assert "docker/system.py" in mounted
    for source in {*copied, *mounted}:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in SENT), source


def test_nothing_that_the_wheel_is_made_from_is_held_back():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*build["packages"], *build["force-include"], project["project"]["readme"]]
    assert set(needed) <= set(SENT)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_last_stages_only_copy(target):
    assert re.search(r"^FROM scratch AS runtime$", DOCKERFILE, re.MULTILINE)
    assert re.search(rf"^FROM runtime AS {target}$", DOCKERFILE, re.MULTILINE)
    for name in ("runtime", target):
        instructions = set(re.findall(r"^([A-Z]+) ", stage(name), re.MULTILINE))
        assert instructions <= {"COPY", "ENV", "LABEL", "WORKDIR", "USER", "HEALTHCHECK", "CMD"}, name
        assert not re.search(r"^COPY (?!--from)", stage(name), re.MULTILINE)
    assert re.search(r"^USER (?!0|root)\d+:0$", stage("runtime"), re.MULTILINE)


def test_secrets_are_mounted_and_never_copied_or_set():
    for secret in ("pip_conf", "apt_conf", "apt_sources", "ca"):
        assert f"--mount=type=secret,id={secret}" in DOCKERFILE
        assert not re.search(rf"^(COPY|ADD|ENV|ARG) .*\b{secret}\b", DOCKERFILE, re.MULTILINE)


def test_bases_of_images_are_named_by_one_digest():
    files = sorted((ROOT / "docker").rglob("Dockerfile"))
    bases = {re.search(r"^ARG BASE=(\S+)$", file.read_text(), re.MULTILINE)[1] for file in files}
    assert len(files) == 2 and len(bases) == 1
    assert re.fullmatch(r"debian:bookworm-\d{8}-slim@sha256:[0-9a-f]{64}", bases.pop())
    for file in files:  # no stage begins with something else
        stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", file.read_text(), re.MULTILINE)
        named = {name for _, name in stages}
        assert {source for source, _ in stages} <= {"${BASE}", "scratch", *named}


def test_packages_enter_images_only_through_the_hash_checked_installer():
    for file in [*(ROOT / "docker").rglob("Dockerfile"), *(ROOT / "docker").glob("*.sh")]:
        for line in re.findall(r"^.*\binstall .*$", file.read_text().replace("\\\n", " "), re.MULTILINE):
            apt = "apt" in line or "get install" in line
            assert apt or line.lstrip().startswith("#") or "--no-index" in line, f"{file.name}: {line}"
        assert "extra-index-url" not in file.read_text()
