"""`python -m pipelines.images` against a program in docker's place that notes what it is asked."""

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from ava_core.errors import AvaError
from components import image as named
from pipelines.images import __main__ as command
from pipelines.images import build, package_clients, record

BUILT = "sha256:" + "1" * 64
FAKE = r"""
import json, os, pathlib, shutil, sys

home = pathlib.Path(__file__).parent
given = sys.argv[1:]
with (home / "calls").open("a") as file:
    file.write(json.dumps(given) + "\n")
state = json.loads((home / "state.json").read_text())


def save():
    (home / "state.json").write_text(json.dumps(state))


verb = given[0]
if verb == "version":
    print("20.10")
elif verb == "--version":
    print("Docker version 20.10.24, build abc")
elif verb == "image":
    known = state["images"].get(given[2])
    if known is None:
        sys.exit("Error: No such image: " + given[2])
    print(json.dumps([{"Id": known, "Size": state["sizes"].get(known, 0), "RepoDigests": state["digests"]}]))
elif verb == "build":
    print("#7 [packages-cpu 2/2] RUN --mount=type=secret,id=pip_conf     sh /docker/packages.sh cpu")
    print("#7 1.5 Collecting everything", flush=True)
    if state["fails"]:
        print("#7 ERROR: executor failed running [sh /docker/packages.sh cpu]: exit code: 1")
        sys.exit(1)
    pathlib.Path(given[given.index("--iidfile") + 1]).write_text(state["built"])
    state["images"][state["built"]] = state["built"]
    save()
elif verb == "run":
    if not state["starts"]:
        sys.exit("exec: ava: not found")
    print("ava 0.1.0")
elif verb == "save":
    shutil.copyfileobj((home / "image.tar").open("rb"), sys.stdout.buffer)
elif verb == "tag":
    state["images"][given[2]] = given[1]
    save()
elif verb == "push":
    state["digests"].append(given[2].rpartition(":")[0] + "@sha256:" + "2" * 64)
    save()
else:
    sys.exit(1)
"""


class FakeDocker:
    """Its state, the calls that it got, and the image that it saves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "docker"
        program.write_text(f"#!{sys.executable} -ES\n{FAKE}")  # without site-packages: it starts often
        program.chmod(0o755)
        base = "sha256:" + "0" * 64
        self.set(
            images={"base:1": base}, sizes={base: 100, BUILT: 350}, digests=[], fails=False, starts=True, built=BUILT
        )
        self.hold({"etc/os-release": b"Debian"})

    def set(self, **changes: object) -> None:
        path = self.folder / "state.json"
        state = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**state, **changes}))

    def hold(self, files: dict[str, bytes]) -> None:
        layer = _tar(files)
        image = _tar({"0/layer.tar": layer, "manifest.json": json.dumps([{"Layers": ["0/layer.tar"]}]).encode()})
        (self.folder / "image.tar").write_bytes(image)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    @property
    def builds(self) -> list[list[str]]:
        return [call for call in self.calls if call[0] == "build"]


def _tar(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as out:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return archive.getvalue()


@pytest.fixture
def docker(tmp_path, monkeypatch):
    programs, root = tmp_path / "bin", tmp_path / "checkout"
    programs.mkdir()
    (root / "docker").mkdir(parents=True)
    (root / "docker" / "Dockerfile.dockerignore").write_text("*\n!docker\n!code\n")
    (root / "code").mkdir()
    (root / "code" / "a.py").write_text("1")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "ROOT", root)
    told = package_clients.Sources(
        pip={"index-url": "https://mirror.canary.example/simple"}, apt_sources=[], apt_settings={}, certificates=None
    )
    monkeypatch.setattr(build, "read_sources", lambda release: told)
    return FakeDocker(programs)


def make(*arguments: str) -> None:
    command.main(["--base", "base:1", *arguments])


def test_image_is_built_named_and_recorded_with_its_size(docker, capsys):
    make()
    entry = json.loads(named.RECORD.read_text())["cpu"]
    assert (entry["name"], entry["id"], entry["digest"]) == ("ava-moe:cpu", BUILT, None)
    assert (entry["bytes"], entry["bytes_beyond_base"], entry["base"]) == (350, 250, "base:1")
    assert ["tag", BUILT, "ava-moe:cpu"] in docker.calls
    assert named.choose() == BUILT
    printed = capsys.readouterr().out
    assert "  packages-cpu 2/2: RUN sh /docker/packages.sh cpu\n" in printed
    assert "ava-moe:cpu: built: ava 0.1.0" in printed


@pytest.mark.slow
def test_unchanged_files_are_not_built_again_and_changed_ones_are(docker, capsys):
    make()
    make()
    assert len(docker.builds) == 1 and f"up to date: {BUILT}" in capsys.readouterr().out
    (build.ROOT / "code" / "a.py").write_text("2")
    make()
    assert len(docker.builds) == 2
    make("--no-cache")
    assert "--no-cache" in docker.builds[2] and "--no-cache" not in docker.builds[1]


def test_image_that_the_engine_lost_is_built_again(docker):
    make()
    docker.set(images={"base:1": "sha256:" + "0" * 64})
    make()
    assert len(docker.builds) == 2


def test_other_base_is_another_image(docker):
    make()
    docker.set(images={"base:1": "sha256:" + "9" * 64, "ava-moe:cpu": BUILT})
    make()
    assert len(docker.builds) == 2


def test_secrets_are_passed_as_files_and_never_as_arguments(docker):
    make()
    arguments = docker.builds[0]
    assert any(word.startswith("id=pip_conf,src=") for word in arguments)
    assert not any("canary" in word for call in docker.calls for word in call)
    assert "canary" not in Path("build/image-cpu.log").read_text()


def test_image_that_holds_a_secret_is_refused_and_gets_no_name(docker):
    docker.hold({"etc/pip.conf": b"index-url = https://mirror.canary.example/simple"})
    with pytest.raises(AvaError, match=r"secret: host mirror\.canary\.example: layer 0, etc/pip\.conf"):
        make()
    assert not named.RECORD.exists()
    assert not [call for call in docker.calls if call[0] == "tag"]


def test_failing_build_is_one_line_with_the_log(docker):
    docker.set(fails=True)
    with pytest.raises(AvaError, match=r"docker build: exit code 1: #7 ERROR: executor failed .*image-cpu\.log"):
        make()
    assert "Collecting everything" in Path("build/image-cpu.log").read_text()
    assert not named.RECORD.exists()


def test_image_that_does_not_start_is_refused(docker):
    docker.set(starts=False)
    with pytest.raises(AvaError, match="docker run: exec: ava: not found"):
        make()
    assert not named.RECORD.exists()


def test_libraries_of_the_steps_are_loaded_before_the_image_gets_its_name(docker):
    make()
    loaded, named_at = (
        next(index for index, call in enumerate(docker.calls) if call[0] == verb) for verb in ("run", "tag")
    )
    assert "torch" in docker.calls[loaded][-1] and loaded < named_at
    assert {"--read-only", "--network=none"} <= set(docker.calls[loaded])


def test_both_targets_are_recorded_beside_each_other(docker):
    make("--target", "cpu", "--target", "gpu")
    assert set(json.loads(named.RECORD.read_text())) == {"cpu", "gpu"}
    assert [call[call.index("--target") + 1] for call in docker.builds] == ["cpu", "gpu"]


def test_pushed_image_is_compiled_by_its_digest(docker):
    make("--push", "registry.example/team/ava")
    digest = "registry.example/team/ava@sha256:" + "2" * 64
    assert named.choose() == digest and named.warning(digest) is None
    assert ["push", "--quiet", "registry.example/team/ava:0.1.0-cpu"] in docker.calls
    make()
    assert named.choose() == digest, "the same image keeps its digest"
    docker.set(built="sha256:" + "3" * 64)
    make("--no-cache")
    assert named.choose() == "sha256:" + "3" * 64, "another image has none yet"


def test_labels_carry_version_and_commit_of_the_checkout(docker, monkeypatch):
    commit = build.Commit(revision="a" * 40, created="2026-01-02T03:04:05+00:00")
    monkeypatch.setattr(build, "read_commit", lambda root: commit)
    make()
    given = [word.removeprefix("org.opencontainers.image.") for word in docker.builds[0]]
    assert {"version=0.1.0", f"revision={'a' * 40}", f"created={commit.created}", "base.name=base:1"} <= set(given)


def test_commit_of_a_changed_checkout_is_marked(tmp_path):
    import subprocess

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "file").write_text("1")
    git("init")
    git("add", "file")
    git("commit", "-m", "first")
    clean = build.read_commit(tmp_path)
    assert len(clean.revision) == 40 and clean.created
    (tmp_path / "file").write_text("2")
    assert build.read_commit(tmp_path).revision == f"{clean.revision}-dirty"
    assert build.read_commit(tmp_path / "nowhere") == build.Commit(revision="", created="")


def test_unreadable_record_is_written_anew(docker):
    named.RECORD.parent.mkdir()
    named.RECORD.write_text("{broken")
    assert record.read() == {}
    make()
    assert named.choose() == BUILT
