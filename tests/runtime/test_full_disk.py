"""A disk that is really full: a tmpfs of 1 MiB, where mounting one is permitted."""

import errno
import subprocess

import pytest

from ava_core.errors import AvaError
from ava_core.runtime.full_disk import full_disk_explained


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"can't mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def only_line(result) -> str:
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    return line


def test_full_work_folder_ends_in_one_line_and_keeps_what_was_finished(counting, small_disk):
    flags = ("--log-level", "error")
    work = small_disk / "work"
    # 4 blocks of 240 KB fit, the output that joins them doesn't.
    line = only_line(counting.run(*flags, work=work, COUNT_BYTES=240_000))
    assert line.startswith(f"ava: {work}")
    assert "no space left on the disk: free some" in line
    assert not counting.output.exists()
    assert not list(work.glob("count/*/output*"))
    assert len(list(work.glob("count/*/state/*.bin"))) == 4

    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert counting.run(*flags, work=work, COUNT_BYTES=240_000).returncode == 0
    assert counting.computed() == ["0", "1", "2", "3"]


def test_full_output_disk_leaves_no_half_output_and_the_finished_work(counting, small_disk):
    output = small_disk / "out"
    line = only_line(counting.run("--log-level", "error", output=output, COUNT_BYTES=320_000))
    assert "no space left on the disk" in line
    assert str(small_disk) in line
    assert [path.name for path in small_disk.iterdir()] == ["out.log"]
    assert counting.run("--log-level", "error", COUNT_BYTES=320_000).returncode == 0
    assert counting.computed() == ["0", "1", "2", "3"]


def test_an_output_survives_when_its_replacement_does_not_fit(counting, small_disk, read_all):
    output = small_disk / "out"
    assert counting.run(output=output, COUNT_BYTES=64_000).returncode == 0
    before = read_all(output), (small_disk / "out.timings.json").read_bytes()
    only_line(counting.run("--log-level", "error", "--letter", "b", "--force", output=output, COUNT_BYTES=320_000))
    assert (read_all(output), (small_disk / "out.timings.json").read_bytes()) == before


def test_a_full_disk_under_the_log_file_does_not_stop_the_step(counting, small_disk):
    (small_disk / "filler").write_bytes(bytes(2**20 - 4096))
    log = small_disk / "step.log"
    log.touch()
    with (small_disk / "rest").open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    result = counting.run("--log-file", log)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert (counting.output / "manifest.json").is_file()


def test_a_mount_point_is_refused_as_output_before_any_work(counting, small_disk):
    result = counting.run(output=small_disk)
    assert result.returncode == 2
    assert f"--output {small_disk}: is a mount point" in result.stderr
    assert counting.computed() == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
        RuntimeError("sqlite3: database or disk is full"),
    ],
)
def test_a_full_disk_is_recognised_in_the_words_of_any_library(tmp_path, error):
    with pytest.raises(AvaError, match="no space left on the disk"), full_disk_explained(tmp_path):
        raise error


def test_an_error_that_came_from_a_full_disk_is_recognised(tmp_path):
    with pytest.raises(AvaError, match="no space left"), full_disk_explained(tmp_path):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("can't save") from error


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="failed to write"), full_disk_explained(tmp_path):
        raise RuntimeError("failed to write: permission")


def save_with_torch(path):
    import torch

    torch.save(torch.zeros(2**19), path)


def save_with_safetensors(path):
    import numpy
    from safetensors.numpy import save_file

    save_file({"x": numpy.zeros(2**19, dtype="float32")}, path)


def save_with_arrow(path):
    from datasets import Dataset

    Dataset.from_dict({"x": [list(range(2**17))] * 4}).save_to_disk(path)


@pytest.mark.slow
@pytest.mark.parametrize("save", [save_with_torch, save_with_safetensors, save_with_arrow])
def test_a_full_disk_is_recognised_behind_the_library_that_met_it(small_disk, save):
    with pytest.raises(AvaError, match="no space left on the disk"), full_disk_explained(small_disk):
        save(small_disk / "x")
