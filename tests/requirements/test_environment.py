"""A checkout that was copied or moved with its .venv: it never runs the code of the original, and `make` mends it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("Makefile", "pyproject.toml", "hatch_build.py", "requirements", "ava_core", "configs")


DROPPED = ("PYTHON", "VIRTUAL_ENV", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
"""Of the shell and of a `make test` around the tests, whose inner `make` would speak of folders."""


def run(command, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
    return subprocess.run(command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True)


def where(checkout: Path) -> str:
    """Of which checkout's code a program of this one's environment is, started elsewhere."""
    python = checkout / ".venv" / "bin" / "python"
    done = run([python, "-c", "import ava_core; print(ava_core.__file__)"], Path("/"))
    return str(Path(done.stdout.strip()).parents[1])


@pytest.fixture
def original(tmp_path):
    """A checkout with an environment of its own: Ava editable, the packages borrowed from the tests' environment."""
    checkout = tmp_path / "original"
    checkout.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, checkout)
    environment = checkout / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python3*/site-packages")
    (packages / "_editable_impl_ava_moe.pth").write_text(f"{checkout}\n")
    (packages / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    script = environment / "bin" / "ava"
    script.write_text(f"#!{environment}/bin/python\nfrom ava_core.cli.main import main\nmain()\n")
    script.chmod(0o755)
    digest = run([sys.executable, "-c", "import environment as e, pathlib as p; print(e.digest(p.Path('..')))"],
                 checkout / "requirements").stdout  # fmt: skip
    (environment / ".ready").write_text(f"{checkout}\n{digest}")
    done = run(["make", "setup"], checkout)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert run([script, "--version"], checkout).returncode == 0 and where(checkout) == str(checkout)
    return checkout


def copied(original: Path, name: str) -> Path:
    subprocess.run(["cp", "-r", original, original.parent / name], check=True)
    return original.parent / name


def test_copied_environment_refuses_to_run_the_originals_code(original):
    copy = copied(original, "copy")
    done = run([copy / ".venv/bin/ava", "--version"], copy)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"ava: {copy}/.venv: is a copy of {original}/.venv and would run its code: run `make setup` in {copy}\n"
    )
    # The copy's own Python, but the original's code by the editable package.
    done = run([copy / ".venv/bin/python", "-c", "from ava_core.cli.main import main; main()", "--version"], Path("/"))
    assert done.returncode == 1 and f"is a copy and would run the code in {original}: run `make setup`" in done.stderr


def test_make_mends_a_copy_and_says_so_in_one_line_and_leaves_the_original_alone(original):
    copy = copied(original, "copy")
    before = {path: path.read_bytes() for path in (original / ".venv" / "bin").iterdir() if path.is_file()}
    done = run(["make", "setup"], copy)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"make: .venv came from {original}: mended {done.stdout.split()[-5]} files that named it"
    ]
    assert where(copy) == str(copy)
    done = run([copy / ".venv/bin/ava", "--version"], copy)
    assert done.returncode == 0 and done.stderr == ""
    assert str(original) + "/" not in (copy / ".venv/bin/activate").read_text()
    assert {path: path.read_bytes() for path in before} == before and where(original) == str(original)
    assert "Nothing to be done" in run(["make", "setup"], copy).stdout


def test_copy_by_hard_links_does_not_change_the_original(original):
    copy = original.parent / "linked"
    subprocess.run(["cp", "-al", original, copy], check=True)
    assert run(["make", "setup"], copy).returncode == 0
    assert where(copy) == str(copy) and where(original) == str(original)
    assert (original / ".venv/.ready").read_text().startswith(f"{original}\n")


def test_moved_checkout_works_again_after_any_target_of_make(original):
    moved = original.rename(original.parent / "moved")
    with pytest.raises(FileNotFoundError):  # what a shell calls 127: the first line of the script leads nowhere
        run([moved / ".venv/bin/ava", "--version"], moved)
    done = run(["make", "-n", "lint"], moved)
    assert "requirements/environment.py" in done.stdout
    assert run(["make", "setup"], moved).returncode == 0
    assert run([moved / ".venv/bin/ava", "--version"], moved).returncode == 0


def test_clean_works_in_a_moved_checkout(original):
    moved = original.rename(original.parent / "moved")
    done = run(["make", "clean"], moved)
    assert (done.returncode, done.stderr) == (0, ""), done


def test_changed_requirement_is_installed_and_touched_files_are_not(original):
    (original / "pyproject.toml").touch()
    assert run(["make", "setup"], original).stdout == ""
    (original / "hatch_build.py").write_text((original / "hatch_build.py").read_text() + "\n")
    script = original / "requirements/install.py"  # that it begins is what is asked here
    script.write_text(
        script.read_text().replace('__name__ == "__main__":\n', '__name__ == "__main__":\n    sys.exit(3)\n')
    )
    done = run(["make", "setup"], original)
    assert "make: installing what requirements/ pins into .venv" in done.stdout and done.returncode == 2
    assert run(["make", "setup"], original).returncode == 2, "what did not come to its end is begun again"


def test_folder_whose_name_begins_like_the_former_one_is_not_taken_for_it(original):
    script = original / ".venv/bin/other"
    script.write_text(f"#!{original}/.venv/bin/python\n# {original}-2/data\n")
    copy = copied(original, "copy")
    assert run(["make", "setup"], copy).returncode == 0
    assert (copy / ".venv/bin/other").read_text() == f"#!{copy}/.venv/bin/python\n# {original}-2/data\n"


def test_command_that_is_run_in_another_checkout_says_whose_code_it_is(original):
    copy = copied(original, "copy")
    done = run([original / ".venv/bin/ava", "--version"], copy)
    assert done.returncode == 0
    assert done.stderr == (
        f"ava: runs the code in {original}, not that in {copy}: run `make setup` here and use .venv/bin/ava\n"
    )


def test_python_that_is_not_pinned_for_is_refused_in_one_line_and_nothing_is_left_behind(original):
    shutil.rmtree(original / ".venv")
    script = original / "requirements/install.py"
    script.write_text(script.read_text().replace('PYTHONS = ("3.11", "3.12", "3.13")', 'PYTHONS = ("3.5", "3.6")'))
    done = run(["make", "setup", f"PYTHON={sys.executable}"], original)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert done.returncode == 2 and not (original / ".venv").exists()
    assert done.stderr.splitlines()[0] == (
        f"make: {sys.executable} is Python {version}, and the packages are pinned for 3.5, 3.6: "
        "name one of those: make setup PYTHON=python3.6"
    )


def test_python_that_is_not_there_is_one_line_with_the_way_out(original):
    shutil.rmtree(original / ".venv")
    done = run(["make", "setup", "PYTHON=python3.99"], original)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "make: no Python python3.99: install 3.11 to 3.13, or give PYTHON=..."
