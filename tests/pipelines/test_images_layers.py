"""What is read from an image's layers: sizes, traces of secrets, and the bill of materials that is made of it."""

import io
import json
import tarfile

import pytest

from ava_core.errors import AvaError
from pipelines.images import layers, sbom
from pipelines.images.layers import Contents, part_of

SITE = "opt/ava/lib/python3.11/site-packages"
METADATA = (
    "Metadata-Version: 2.4\nName: Some.Thing\nVersion: 1.2\nSummary: Does things\nLicense-Expression: MIT\n\nText"
)
STATUS = (
    "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n"
    "Description: the library\n more of it\n\n"
    "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\nDescription: not there\n"
)


def tar(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as out:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            out.addfile(member)
    return archive.getvalue()


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Let `docker save` give an image of these layers, or fail."""

    def answer(*contents: bytes, script: str = 'cat "$(dirname "$0")/image.tar"') -> None:
        names = [f"blobs/sha256/{number}" for number in range(len(contents))]
        image = tar(
            {**dict(zip(names, contents, strict=True)), "manifest.json": json.dumps([{"Layers": names}]).encode()}
        )
        (tmp_path / "image.tar").write_bytes(image)
        program = tmp_path / "docker"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return answer


def test_every_layer_is_read_also_a_file_that_a_later_layer_hides(save):
    save(tar({"etc/pip.conf": b"index = hidden.example"}), tar({"etc/.wh.pip.conf": b""}))
    assert layers.read("image", {"host": b"hidden.example"}).leaks == ["host: layer 0, etc/pip.conf"]


def test_trace_in_binary_file_in_name_and_in_target_of_a_link_is_found(save):
    save(tar({"a": b"\0\1secret\2", "home/secret": b""}, links={"link": "/srv/secret/x"}))
    found = layers.read("image", {"it": b"secret"}).leaks
    assert found == ["it: layer 0, a", "it: layer 0, home/secret", "it: layer 0, link"]


def test_clean_layers_have_no_leaks(save):
    save(tar({"a": b"nothing"}))
    assert layers.read("image", {"it": b"secret"}).leaks == []


def test_sizes_add_up_by_part(save):
    files = {f"{SITE}/torch/lib/x.so": b"12345", f"{SITE}/torch-2.dist-info/RECORD": b"1", "usr/lib/y": b"12"}
    save(tar(files))
    assert layers.read("image", {}).sizes == {"python: torch": 6, "debian: usr/lib": 2}


def test_packages_are_read(save):
    save(tar({f"{SITE}/x-1.dist-info/METADATA": METADATA.encode(), layers.DPKG_STATUS: STATUS.encode()}))
    contents = layers.read("image", {})
    assert contents.python_packages == [METADATA] and contents.dpkg_status == STATUS


def test_image_that_the_engine_does_not_have_is_one_line(save):
    save(script="echo 'reference does not exist' >&2; exit 1")
    with pytest.raises(AvaError, match="docker save image: reference does not exist"):
        layers.read("image", {})


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (f"{SITE}/numpy/__init__.py", "python: numpy"),
        (f"{SITE}/numpy.libs/lib.so", "python: numpy"),
        (f"{SITE}/numpy-2.4.6.dist-info/METADATA", "python: numpy"),
        (f"{SITE}/six.py", "python: six"),
        ("opt/ava/bin/ava", "opt/ava"),
        ("opt/ava-corpus/shakespeare/hamlet.md", "opt/ava-corpus"),
        ("usr/lib/x86_64-linux-gnu/libc.so.6", "debian: usr/lib"),
        ("usr/share/doc/x/copyright", "debian: usr/share"),
        ("etc/passwd", "debian: etc"),
    ],
)
def test_part_of_a_file(path, part):
    assert part_of(path) == part


def bill(**changes) -> str:
    contents = Contents(python_packages=[METADATA], dpkg_status=STATUS)
    given = {"name": "ava-moe", "version": "0.1", "identity": "sha256:1", "created": "2026-01-01T00:00:00+01:00"}
    return sbom.build(**{**given, "contents": contents, **changes})


def test_bill_lists_what_pip_and_dpkg_installed_by_package_url():
    components = {part["purl"]: part for part in json.loads(bill())["components"]}
    assert set(components) == {"pkg:pypi/some-thing@1.2", "pkg:deb/debian/libc6@2.36-9?arch=amd64"}
    python = components["pkg:pypi/some-thing@1.2"]
    assert python["description"] == "Does things" and python["licenses"] == [{"license": {"id": "MIT"}}]
    assert components["pkg:deb/debian/libc6@2.36-9?arch=amd64"]["description"] == "the library"


def test_bill_names_the_image_and_is_the_same_every_time():
    parsed = json.loads(bill())
    assert parsed["specVersion"] == "1.6" and parsed["metadata"]["component"]["type"] == "container"
    assert parsed["metadata"]["component"]["properties"] == [{"name": "ava:image:id", "value": "sha256:1"}]
    assert parsed["metadata"]["timestamp"] == "2025-12-31T23:00:00+00:00"
    assert bill() == bill() and bill(identity="sha256:2") != bill()


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("License-Expression: MIT OR Apache-2.0", [{"expression": "MIT OR Apache-2.0"}]),
        ("License: Something of our own", [{"license": {"name": "Something of our own"}}]),
        ("License: UNKNOWN", None),
        (f"License: {'the whole text ' * 20}", None),
    ],
)
def test_licences_are_what_the_package_says_unless_that_says_nothing(field, given):
    metadata = METADATA.replace("License-Expression: MIT", field)
    parsed = json.loads(bill(contents=Contents(python_packages=[metadata])))
    assert parsed["components"][0].get("licenses") == given


def test_bill_that_breaks_the_schema_is_refused(monkeypatch):
    monkeypatch.setattr(sbom.JsonV1Dot6, "output_as_string", lambda self, **_: '{"bomFormat": "Other"}')
    with pytest.raises(AvaError, match="ava-moe: the bill of materials breaks CycloneDX's schema"):
        bill()
