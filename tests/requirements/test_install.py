"""requirements/install.py with pip itself and small packages of our own making, without an index."""

import base64
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "requirements" / "install.py"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
MARKER = f"python_version == '{VERSION}' and platform_machine == 'x86_64'"
x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="PyTorch's CPU build has a version of its own there")


def make_wheel(folder: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> str:
    """A wheel with one empty module; its SHA-256."""
    info = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    contents = {
        f"{name}.py": "",
        f"{info}/METADATA": "\n".join([*lines, *(f"Requires-Dist: {item}" for item in requires)]) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digest = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for path, text in contents.items()
    }
    record = "".join(f"{path},sha256={digest[path]},{len(text)}\n" for path, text in contents.items())
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**contents, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def make_source(folder: Path, name: str, version: str, mark: Path) -> str:
    """A package that is published as sources only, whose setup.py leaves a mark; its SHA-256."""
    files = {
        "setup.py": f"import pathlib, setuptools\npathlib.Path({str(mark)!r}).touch()\n"
        f"setuptools.setup(name={name!r}, version={version!r}, py_modules=[{name!r}])\n",
        f"{name}.py": "",
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    }
    with tarfile.open(folder / f"{name}-{version}.tar.gz", "w:gz") as archive:
        for path, text in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256((folder / f"{name}-{version}.tar.gz").read_bytes()).hexdigest()


class Sandbox:
    """A folder like requirements/, an index without network, and an environment to fill."""

    def __init__(self, folder: Path) -> None:
        self.files, self.index, self.mark = folder / "requirements", folder / "index", folder / "built"
        for path in (self.files, self.index):
            path.mkdir()
        shutil.copy(SCRIPT, self.files)
        self.environment = folder / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.environment], check=True)
        self.python = self.environment / "bin" / "python"

    def pin(self, stem: str, requirement: str, digest: str) -> None:
        with (self.files / f"{stem}.txt").open("a") as file:
            file.write(f"{requirement} \\\n    --hash=sha256:{digest}\n")

    def install(self, *arguments: str) -> subprocess.CompletedProcess:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        # Port 9 of the loopback address answers nothing: what isn't in the folder is nowhere.
        told = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index)}
        command = [sys.executable, self.files / "install.py", "--into", self.python, *arguments]
        return subprocess.run(command, env={**kept, **told}, capture_output=True, text=True)

    def installed(self) -> set[str]:
        return {path.name.partition("-")[0] for path in self.environment.glob("lib/*/site-packages/*.dist-info")}


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


def test_packages_with_the_pinned_hash_are_installed_and_nothing_that_they_ask_for_comes_along(sandbox):
    sandbox.pin("steps", "alpha==1.0", make_wheel(sandbox.index, "alpha", "1.0", requires=("beta",)))
    make_wheel(sandbox.index, "beta", "1.0")
    done = sandbox.install("steps")
    assert done.returncode == 0, done.stderr
    assert sandbox.installed() == {"alpha"}
    checked = sandbox.install("--check")
    assert checked.returncode == 1
    assert "alpha 1.0 requires beta, which is not installed" in checked.stderr
    assert checked.stderr.splitlines()[-1] == "install: requirements/ lacks what the lines above name: make lock"


def test_another_file_under_the_same_name_and_version_is_refused(sandbox):
    sandbox.pin("steps", "alpha==1.0", make_wheel(sandbox.index, "alpha", "1.0"))
    sandbox.pin("dev", "beta==1.0", make_wheel(sandbox.index, "beta", "1.0"))
    make_wheel(sandbox.index, "beta", "1.0", requires=("alpha",))  # what someone put in its sandbox
    done = sandbox.install("steps", "dev")
    assert done.returncode == 1 and sandbox.installed() == set()
    assert done.stderr.splitlines()[-1].startswith("install: steps.txt, dev.txt: pip could not install them")
    assert "HASH" in done.stderr


def test_package_from_another_index_does_not_win_by_a_higher_version(sandbox):
    sandbox.pin("steps", "alpha==1.0", make_wheel(sandbox.index, "alpha", "1.0"))
    make_wheel(sandbox.index, "alpha", "99.0")
    assert sandbox.install("steps").returncode == 0
    assert (sandbox.environment / "lib" / f"python{VERSION}" / "site-packages" / "alpha-1.0.dist-info").is_dir()


def test_nothing_is_built_but_what_the_files_of_sources_name(sandbox):
    digest = make_source(sandbox.index, "gamma", "2.0", sandbox.mark)
    sandbox.pin("steps", "gamma==2.0", digest)
    done = sandbox.install("steps")
    assert done.returncode == 1 and not sandbox.mark.exists(), done.stderr


@x86_64
@pytest.mark.parametrize("flag", ["cpu", "cuda"])
def test_pytorch_is_the_build_that_was_asked_for(sandbox, flag):
    sandbox.pin("torch-cpu", f"torch==1.0+cpu ; {MARKER}", make_wheel(sandbox.index, "torch", "1.0+cpu"))
    sandbox.pin("torch", "torch===1.0", make_wheel(sandbox.index, "torch", "1.0"))
    done = sandbox.install("--torch", flag)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    (info,) = sandbox.environment.glob("lib/*/site-packages/torch-*.dist-info")
    assert info.name == f"torch-1.0{'+cpu' if flag == 'cpu' else ''}.dist-info"


@x86_64
@pytest.mark.parametrize(
    ("pinned", "reason"),
    [
        (f"torch==1.0+cpu ; {MARKER}", "neither pip's index nor PyTorch's own gives it"),
        ("torch==1.0+cpu ; python_version == '3.5' and platform_machine == 'x86_64'", "no hash of it is known for"),
    ],
)
def test_where_the_cpu_build_can_not_be_had_the_ordinary_one_is_taken_and_a_line_says_so(sandbox, pinned, reason):
    sandbox.pin("torch-cpu", pinned, "0" * 64)
    sandbox.pin("torch", "torch===1.0", make_wheel(sandbox.index, "torch", "1.0"))
    done = sandbox.install("--torch", "cpu")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and reason in done.stdout and "CUDA" in done.stdout
    assert sandbox.installed() == {"torch"}


def test_set_that_is_not_there_is_named(sandbox):
    done = sandbox.install("stepz")
    assert done.returncode == 2 and "stepz: no such set" in done.stderr


def test_python_without_pinned_packages_is_refused_in_one_line_with_the_way_out(sandbox):
    sandbox.pin("steps", "alpha==1.0", make_wheel(sandbox.index, "alpha", "1.0"))
    script = sandbox.files / "install.py"
    script.write_text(script.read_text().replace('PYTHONS = ("3.11", "3.12", "3.13")', 'PYTHONS = ("3.5", "3.6")'))
    done = sandbox.install("steps")
    assert done.returncode == 1 and sandbox.installed() == set()
    assert done.stderr == (
        f"install: Python {VERSION} is not among those that the packages are pinned for (3.5, 3.6): "
        "give another: make setup PYTHON=python3.6\n"
    )
