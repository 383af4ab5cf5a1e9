"""An image pushed to a real registry (Debian's docker-registry, on this machine): by its digest it can be had again."""

import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

from ava_core.errors import AvaError
from components import image as named
from pipelines.images import build, engine, record

pytestmark = pytest.mark.slow


@pytest.fixture
def registry(tmp_path):
    """The address of an empty registry."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed: apt-get install docker-registry")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {tmp_path}/store\nhttp:\n  addr: {address}\n"
    )
    process = subprocess.Popen([program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://{address}/v2/", timeout=10).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def image(tmp_path):
    """A small image of our own making."""
    try:
        engine.ensure()
    except AvaError as error:
        pytest.skip(str(error))
    content = uuid.uuid4().hex.encode()
    with tarfile.open(tmp_path / "root.tar", "w") as archive:
        member = tarfile.TarInfo("file")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    name = f"ava-push-test:{uuid.uuid4().hex[:8]}"
    yield engine.ask("import", str(tmp_path / "root.tar"), name)
    for tag in engine.ask("image", "ls", "--filter", "reference=*/ava-push-test", "--format", "{{.ID}}").split():
        subprocess.run(["docker", "rmi", "--force", tag], capture_output=True)
    subprocess.run(["docker", "rmi", "--force", name], capture_output=True)


def test_pushed_image_is_recorded_and_pulled_by_its_digest(registry, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record.write("cpu", {"name": "ava-moe:cpu", "id": image, "digest": None})
    build.push("cpu", f"{registry}/ava-push-test", print)
    digest = json.loads(Path("build/images.json").read_text())["cpu"]["digest"]
    assert digest.startswith(f"{registry}/ava-push-test@sha256:")
    assert named.choose() == digest and named.warning(digest) is None
    subprocess.run(["docker", "rmi", "--force", image], check=True, capture_output=True)
    assert engine.inspect(digest) is None
    engine.ask("pull", "--quiet", digest)
    assert engine.inspect(digest)["Id"] == image


def test_image_that_was_not_built_is_not_pushed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AvaError, match=r"cpu: no image was built: python -m pipelines\.images --target cpu"):
        build.push("cpu", "registry.invalid/ava", print)


def test_registry_that_does_not_answer_is_one_line(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record.write("cpu", {"name": "ava-moe:cpu", "id": image, "digest": None})
    with pytest.raises(AvaError, match=r"docker push: .*127\.0\.0\.1:1"):
        build.push("cpu", "127.0.0.1:1/ava-push-test", print)
    assert json.loads(Path("build/images.json").read_text())["cpu"]["digest"] is None
