"""Which docker client builds, and what is said where none can, against scripts in the place of docker."""

from pathlib import Path

import pytest

from ava_core.errors import AvaError
from pipelines.images import base, engine

PINNED = f"registry.example/debian:12@sha256:{'b' * 64}"


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """Put a script named docker on PATH, behind those before it; nothing else is on PATH."""
    folders: list[str] = []

    def put(script: str) -> Path:
        path = tmp_path / f"bin{len(folders)}" / "docker"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        folders.append(str(path.parent))
        monkeypatch.setenv("PATH", ":".join(folders))
        return path

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(engine, "DEBIAN_CLIENT", str(tmp_path / "no-such-folder"))
    return put


def client(version: str, buildx: int = 1) -> str:
    return f'case "$1" in buildx) exit {buildx};; --version) echo "Docker version {version}, build abc";; esac'


def test_client_with_buildx_builds_with_it(docker):
    docker(client("20.10.24+dfsg1"))
    modern = docker(client("28.2.2", buildx=0))
    command, variables = engine.build_command()
    assert command == [str(modern), "buildx", "build", "--load", "--allow=network.host"]
    assert variables == {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}


def test_old_client_behind_a_new_one_without_buildx_builds_by_itself(docker):
    docker(client("28.2.2"))
    old = docker(client("20.10.24+dfsg1"))
    assert engine.build_command() == ([str(old), "build"], {"DOCKER_BUILDKIT": "1"})


@pytest.mark.parametrize("version", ["23.0.0", "28.2.2", "nonsense"])
def test_client_that_cannot_use_build_secrets_is_refused_with_the_way_out(docker, version):
    path = docker(client(version))
    with pytest.raises(
        AvaError, match=rf"{path}: can't use BuildKit: install the plugin buildx, or Debian's docker\.io"
    ):
        engine.build_command()


def test_without_docker_the_line_says_what_to_install(docker):
    with pytest.raises(
        AvaError, match=r"docker: no such program: install Docker \(Debian: apt-get install docker\.io\)"
    ):
        engine.ensure()


def test_without_an_engine_the_line_says_why_and_what_to_do(docker):
    docker("echo 'Cannot connect to the Docker daemon at unix:///nowhere.' >&2; exit 1")
    with pytest.raises(AvaError, match=r"no Docker engine answers \(.*unix:///nowhere.*\): start it .* DOCKER_HOST"):
        engine.ensure()


def test_image_that_is_not_here_is_none_and_another_failure_is_told(docker):
    program = docker("echo 'Error: No such image: x' >&2; exit 1")
    assert engine.inspect("x") is None
    program.write_text("#!/bin/sh\necho 'permission denied' >&2; exit 1\n")
    with pytest.raises(AvaError, match="docker image: permission denied"):
        engine.inspect("x")


def test_base_that_is_given_is_taken_from_here_or_from_its_registry(docker):
    program = docker("""case "$2" in inspect) echo '[{"Id": 1}]';; *) exit 1;; esac""")
    assert base.choose("mine:12", pytest.fail) == "mine:12"
    program.write_text("#!/bin/sh\ncase $1 in pull) exit 0;; *) echo 'No such image' >&2; exit 1;; esac\n")
    assert base.choose(PINNED, pytest.fail) == PINNED


def test_base_of_a_registry_is_refused_without_a_digest(docker):
    docker("case $1 in pull) exit 0;; *) echo 'No such image' >&2; exit 1;; esac")
    for name in ("mine:12", "registry.example:5000/team/debian", "mine@latest"):
        with pytest.raises(AvaError, match=rf"{name}: no such image here, .* by its digest only.*{name}@sha256:"):
            base.choose(name, pytest.fail)


def test_base_that_cannot_be_had_is_refused_with_the_way_out(docker):
    docker("echo 'No such image' >&2; exit 1")
    with pytest.raises(AvaError, match=rf"{PINNED}: no such image here, and no registry gives it: leave out --base"):
        base.choose(PINNED, pytest.fail)


def test_base_built_here_comes_before_one_of_a_registry(docker):
    docker('case "$2" in inspect) echo "[{\\"Id\\": 1}]";; *) exit 1;; esac')
    assert base.choose(None, pytest.fail) == base.LOCAL_BASE


def test_base_is_fetched_from_a_registry_that_has_it(docker):
    docker('case "$1" in pull) exit 0;; *) echo "No such image" >&2; exit 1;; esac')
    assert base.choose(None, pytest.fail) == base.read_default()


def test_without_registry_and_mmdebstrap_the_line_says_what_to_install(docker):
    docker('echo "No such image" >&2; exit 1')
    with pytest.raises(AvaError, match=r"mmdebstrap is not installed: apt-get install mmdebstrap, or .*--base"):
        base.choose(None, print)
