"""What an image's build is told of this machine's package clients, and what would give it away."""

import base64
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pipelines.images import package_clients
from pipelines.images.package_clients import Sources, build_secrets, read_sources


def sources(**changes) -> Sources:
    plain = {"pip": {}, "apt_sources": [], "apt_settings": {}, "certificates": None}
    return Sources(**{**plain, **changes})


@pytest.fixture
def certificate(tmp_path) -> Path:
    """A bundle with one certificate that nobody else has."""
    path = tmp_path / "ca.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=test"]
    subprocess.run([*command, "-keyout", str(tmp_path / "key"), "-out", str(path)], check=True, capture_output=True)
    return path


@pytest.fixture
def pip_settings(tmp_path, monkeypatch):
    """pip configured by one file and by PIP_*, and by nothing else."""
    for name in ("PIP_FIND_LINKS", "PIP_CERT", "PIP_DEFAULT_TIMEOUT", "PIP_EXTRA_INDEX_URL", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)

    def write(text: str) -> None:
        path = tmp_path / "pip.conf"
        path.write_text(text)
        monkeypatch.setenv("PIP_CONFIG_FILE", str(path))

    return write


def test_nothing_is_passed_on_where_nothing_is_configured():
    with build_secrets(sources()) as secrets:
        assert secrets == {}
    assert sources().traces() == {}


def test_options_that_lead_to_packages_are_passed_on_and_no_others(pip_settings, monkeypatch):
    pip_settings(
        "[global]\nindex-url = https://me:pass@mirror.example/simple\nconstraint = /nowhere.txt\n"
        "[install]\ntrusted-host =\n  one.example\n  two.example\n"
    )
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "77")
    pip = read_sources("bookworm").pip
    assert pip["index-url"] == "https://me:pass@mirror.example/simple"
    assert pip["trusted-host"] == "one.example two.example"
    assert pip["timeout"] == "77"
    assert "constraint" not in pip and "cert" not in pip


def test_environment_wins_over_files_as_it_does_for_pip(pip_settings, monkeypatch):
    pip_settings("[global]\nextra-index-url = https://file.example/\n")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://environment.example/")
    assert read_sources("bookworm").pip["extra-index-url"] == "https://environment.example/"


def test_files_of_secrets_are_for_this_user_only_and_gone_afterwards(certificate):
    told = sources(
        pip={"index-url": "https://mirror.example/simple"},
        apt_sources=["deb http://mirror.example/debian bookworm main"],
        apt_settings={"Acquire::http::Proxy": "http://proxy.example:3128"},
        certificates=certificate,
    )
    with build_secrets(told) as secrets:
        assert secrets["pip_conf"].read_text() == "[global]\nindex-url = https://mirror.example/simple\n"
        assert secrets["apt_sources"].read_text() == "deb http://mirror.example/debian bookworm main\n"
        assert secrets["apt_conf"].read_text() == 'Acquire::http::Proxy "http://proxy.example:3128";\n'
        assert secrets["ca"].read_text() == certificate.read_text()
        folder = secrets["ca"].parent
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_index_on_this_disk_is_reachable_for_pip_and_only_for_who_knows_its_path(tmp_path):
    wheel = make_wheel(tmp_path / "index" / "files")
    page = tmp_path / "index" / "simple" / "canary" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<!DOCTYPE html><a href="../../files/{wheel.name}">{wheel.name}</a>')
    (tmp_path / "private").write_text("not theirs")
    with build_secrets(sources(pip={"index-url": f"file://{tmp_path}/index/simple"})) as secrets:
        address = secrets["pip_conf"].read_text().split("= ")[1].strip()
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(tmp_path / "got"), "canary"]
        environment = {"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": str(secrets["pip_conf"]), "HOME": str(tmp_path)}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        server = address.split("/")[2]
        for path in ("", "simple/", "guess/simple/", f"{address.split('/')[3]}/../private", "etc/passwd"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://{server}/{path}", timeout=5)
    assert [path.name for path in (tmp_path / "got").iterdir()] == [wheel.name]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=5)


def test_folder_of_wheels_is_reachable_for_pip(tmp_path):
    wheel = make_wheel(tmp_path / "wheels")
    with build_secrets(sources(pip={"find-links": str(tmp_path / "wheels"), "no-index": "true"})) as secrets:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(tmp_path / "got"), "canary"]
        environment = {"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": str(secrets["pip_conf"]), "HOME": str(tmp_path)}
        subprocess.run(command, check=True, env=environment, capture_output=True)
    assert (tmp_path / "got" / wheel.name).is_file()


def test_traces_are_hosts_folders_passwords_and_certificates(certificate, tmp_path):
    told = sources(
        pip={
            "index-url": "https://me:pass-word@mirror.example/simple",
            "extra-index-url": f"https://pypi.org/simple file://{tmp_path}",
            "trusted-host": "other.example:8080",
        },
        apt_sources=["deb http://debian.example/debian bookworm main"],
        apt_settings={"Acquire::http::Proxy": "http://proxy.example:3128", "Acquire::Retries": "3"},
        certificates=certificate,
    )
    traces = set(told.traces().values())
    hosts = {b"mirror.example", b"other.example", b"debian.example", b"proxy.example"}
    body = certificate.read_text().split("-----")[2].strip().encode()
    assert traces == {*hosts, b"pass-word", str(tmp_path).encode(), body, base64.b64decode(body)}


def test_certificates_that_every_debian_has_are_no_trace():
    public = next(Path("/usr/share/ca-certificates").rglob("*.crt"), None)
    if public is None:
        pytest.skip("this machine has no /usr/share/ca-certificates")
    assert sources(certificates=public).traces() == {}


def test_proxy_of_the_environment_is_a_trace(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hidden@proxy.example:1")
    assert set(sources().traces().values()) == {b"proxy.example", b"hidden"}


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("http://mirror.example/debian/ bookworm main", True),
        ("http://mirror.example/debian-security/ bookworm-security main", True),
        ("http://mirror.example/debian/ trixie main", False),
        ("http://mirror.example/debian/ bookworm contrib", False),
        ("https://vendor.example/tool bookworm main", False),
        ("", False),
    ],
)
def test_only_debians_own_archive_of_the_base_is_passed_on(line, taken):
    assert package_clients._is_debian(line, {"bookworm", "bookworm-updates", "bookworm-security"}) is taken


def make_wheel(folder: Path) -> Path:
    """The smallest wheel that pip takes."""
    import zipfile

    folder.mkdir(parents=True)
    path = folder / "canary-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("canary-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: canary\nVersion: 1.0\n")
        archive.writestr("canary-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("canary-1.0.dist-info/RECORD", "")
    return path
