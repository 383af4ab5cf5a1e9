"""The built image: what it holds, and each step in it as a cluster would run it.

Needs a Docker engine with the image that `make images` built (build/images.json).
"""

import json
import os
import subprocess
import uuid
from pathlib import Path

import pytest
import yaml

from components.image import RECORD
from pipelines.images import base, engine, layers
from pipelines.images.package_clients import read_sources
from tests.conftest import ASSETS, TINY_PARAMS, merged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
USER = "12345:0"
"""A user id that the image doesn't know, in the group 0, as OpenShift runs containers."""


def docker(*arguments: str, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def entry():
    try:
        engine.ensure()
    except Exception as error:
        pytest.skip(f"no Docker engine: {error}")
    record = ROOT / RECORD
    images = json.loads(record.read_text()) if record.is_file() else {}
    if "cpu" not in images or engine.inspect(images["cpu"]["id"]) is None:
        pytest.skip("the engine has no image of ours: make images")
    return images["cpu"]


@pytest.fixture(scope="module")
def image(entry) -> str:
    return entry["id"]


def run(image: str, *command: str, folder: Path | None = None, user: str = USER, more: tuple[str, ...] = ()) -> str:
    """What a command prints in a container that can write to /tmp and `folder` only, and reach nothing."""
    mounted = ["--volume", f"{folder}:/data", "--workdir", "/data", "--env", "AVA_WORK=/data/work"] if folder else []
    limits = ["--read-only", "--tmpfs", "/tmp", "--network", "none", "--user", user, "--shm-size", "256m"]
    answer = docker("run", "--rm", *limits, *mounted, *more, image, *command)
    assert answer.returncode == 0, f"{command}: exit code {answer.returncode}\n{answer.stdout}{answer.stderr}"
    return answer.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    folder.chmod(0o777)
    (folder / "verse.txt").write_text((ASSETS / "verse.txt").read_text())
    data = {"sources": [{"path": "verse.txt"}], "document_separator": "\n\n"}
    (folder / "params.yaml").write_text(yaml.safe_dump(merged(TINY_PARAMS, {"data": data})))
    return folder


@pytest.fixture(scope="module")
def finished(image, folder) -> Path:
    """The outputs of all steps, each computed in a container of its own."""
    model, quantized = ["--model", "model"], ["--quantized", "int8"]
    for step, *arguments in (
        ["preprocess", "--data", ".", "--output", "shards"],
        ["train", "--shards", "shards", "--output", "model"],
        ["quantize", *model, "--shards", "shards", "--scheme", "int8", "--output", "int8"],
        ["evaluate", *model, "--shards", "shards", *quantized, "--output", "evaluation"],
        ["gate", *model, *quantized, "--evaluation", "evaluation", "--output", "decision"],
        ["register", *model, *quantized, "--evaluation", "evaluation", "--output", "registration"],
    ):
        more = ("--env", "AVA_TRACKING_URI=sqlite:////data/mlflow.db") if step in ("gate", "register") else ()
        run(image, "ava", step, "--params", "params.yaml", *arguments, folder=folder, more=more)
    return folder


@pytest.mark.parametrize("step", ["shards", "model", "int8", "evaluation", "decision", "registration"])
def test_every_step_runs_as_an_unknown_user_on_a_read_only_file_system(finished, step):
    manifest = json.loads((finished / step / "manifest.json").read_text())
    assert manifest["files"]
    assert os.stat(finished / step).st_uid == 12345


def test_registered_version_is_in_the_registry(finished):
    metrics = json.loads((finished / "registration" / "metrics.json").read_text())
    assert metrics["model_version"] == 1


def test_two_processes_train_with_zero_through_the_compiled_operation(image, folder, finished):
    """Without ninja and a compiler DeepSpeed can't compile its operation, so it is the one of its wheel."""
    code = (
        "from ava_core.distributed.deepspeed import import_deepspeed\n"
        "import_deepspeed()\n"
        "from ava_core.distributed import shared_memory_op as op\n"
        "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder\n"
        "print('operation', op.build(), ShareMemCommBuilder().load().__file__)\n"
    )
    printed = run(image, "python", "-c", code)
    assert "operation None /opt/ava/" in printed and "deepspeed_shm_comm_op" in printed
    changes = (
        "--set",
        "train.processes=2",
        "--set",
        "train.zero_stage=1",
        "--output",
        "model-of-two",
        "--log-level",
        "debug",
    )
    run(image, "ava", "train", "--params", "params.yaml", "--shards", "shards", *changes, folder=folder)
    manifest = json.loads((folder / "model-of-two" / "manifest.json").read_text())
    assert manifest["ranks"] == 2
    log = (folder / "model-of-two.log").read_text()
    assert "the processes use Gloo" not in log


def test_kernels_are_compiled_in(image):
    code = "from ava_core.kernels.build import library_path as p; import ctypes, torch; print(ctypes.CDLL(str(p())))"
    assert "_native-" in run(image, "python", "-c", code)


def test_embedded_corpus_is_in_it_whole(image):
    code = (
        "from pathlib import Path\nfrom ava_core.data.corpora import SHAKESPEARE as corpus\n"
        "folder = Path('/opt/ava-corpus/shakespeare')\ncorpus.verify(folder)\nprint(len(corpus.files(folder)), 'files')"
    )
    assert run(image, "python", "-c", code) == "38 files\n"


@pytest.mark.parametrize("user", ["10001:0", "1:1", USER])
def test_it_is_healthy_whoever_runs_it(image, user):
    assert run(image, "ava", "--version", user=user).startswith("ava ")


def test_engine_calls_the_container_healthy(image):
    name = f"ava-health-{uuid.uuid4().hex[:8]}"
    options = ["--health-interval=1s", "--network=none", "--read-only", "--name", name]
    assert docker("run", "--detach", "--rm", *options, image, "sleep", "120").returncode == 0
    try:
        import time

        for _ in range(60):
            state = docker("inspect", "--format", "{{.State.Health.Status}}", name).stdout.strip()
            if state == "healthy":
                break
            time.sleep(1)
        assert state == "healthy"
    finally:
        docker("rm", "--force", name)


def test_no_compiler_and_no_package_client_is_left(image):
    names = "gcc g++ cc c++ clang ld as make cmake ninja mpicc pip pip3 easy_install apt apt-get dpkg dpkg-deb perl"
    code = "import sys\nfrom shutil import which\nprint([n for n in sys.argv[1:] if which(n)])"
    assert run(image, "python", "-c", code, *names.split()) == "[]\n"
    code = (
        "import importlib.util as u\n"
        "print([n for n in ('pip', 'ensurepip', 'wheel', 'hatchling', 'ninja', 'apt') if u.find_spec(n)])"
    )
    assert run(image, "python", "-c", code) == "[]\n"
    assert run(image, "/usr/bin/python3", "-c", code) == "[]\n"


def test_labels_say_version_commit_and_base(image):
    labels = engine.inspect(image)["Config"]["Labels"]
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}version"] == run(image, "ava", "--version").split()[1]
    assert len(labels[f"{prefix}revision"].removesuffix("-dirty")) == 40
    assert labels[f"{prefix}licenses"] == "MIT" and labels[f"{prefix}created"]
    assert labels[f"{prefix}base.digest"].startswith("sha256:")


def test_it_runs_as_nobody_special_and_without_an_entry_point(image):
    config = engine.inspect(image)["Config"]
    assert config["User"] == "10001:0" and not config["Entrypoint"]


def test_no_layer_holds_what_the_build_was_told_in_secret(image):
    traces = read_sources(base.RELEASE).traces()
    contents = layers.read(image, {**traces, "control": b"SHAKESPEARE = Corpus("})
    # What is there is found: a search that finds nothing would say the same of the secrets.
    assert [leak for leak in contents.leaks if leak.startswith("control")]
    assert not [leak for leak in contents.leaks if not leak.startswith("control")]
    assert contents.sizes["python: torch"] > 100e6


def test_secret_that_is_copied_into_a_layer_and_removed_again_is_found(entry, tmp_path):
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://mirror.canary.example/simple\n")
    (tmp_path / "Dockerfile").write_text(f"FROM {entry['name']}\nCOPY pip.conf /home/ava/\nRUN rm /home/ava/pip.conf\n")
    name = f"ava-canary:{uuid.uuid4().hex[:8]}"
    client, variables = engine.build_command()
    build = [*client, "--tag", name, "--network", "none", str(tmp_path)]
    made = subprocess.run(build, env={**os.environ, **variables}, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    try:
        leaks = layers.read(name, {"host": b"mirror.canary.example"}).leaks
        assert len(leaks) == 1 and leaks[0].endswith(", home/ava/pip.conf")
    finally:
        docker("rmi", "--force", name)


def test_files_have_one_date_and_byte_code_has_none(image):
    code = (
        "import os, pathlib\n"
        "dates = {p.lstat().st_mtime for top in ('/opt', '/usr', '/etc/ssl') for p in pathlib.Path(top).rglob('*')}\n"
        "import ava_core\n"
        "pyc = pathlib.Path(ava_core.__cached__).read_bytes()\n"
        "print(dates, pyc[4])"
    )
    # 1: a hash of the source instead of its date (PEP 552), which isn't compared when the module is loaded.
    assert run(image, "python", "-c", code) == "{315532800.0} 1\n"


def test_bill_of_materials_lists_what_is_installed(image):
    bill = json.loads((ROOT / "build" / "sbom-cpu.cdx.json").read_text())
    assert bill["metadata"]["component"]["properties"] == [{"name": "ava:image:id", "value": image}]
    listed = {part["purl"] for part in bill["components"]}
    code = 'import importlib.metadata as m\nprint(*(f"{d.name.lower()}=={d.version}" for d in m.distributions()))'
    installed = run(image, "python", "-c", code).split()
    assert len([purl for purl in listed if purl.startswith("pkg:pypi/")]) == len(installed) > 50
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in listed)
    assert not any(purl.startswith(("pkg:deb/debian/apt@", "pkg:pypi/pip@")) for purl in listed)


def test_size_stays_within_the_budget(entry):
    assert 0 < entry["bytes_beyond_base"] <= 1.6e9
