"""The step contract, through the real command line and a step of a few lines (counting_step.py)."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest

from ava_core.runtime import manifest


def test_output_holds_manifest_and_metrics_and_the_clock_stays_beside_it(counting, read_all):
    result = counting.run()
    assert result.returncode == 0, result.stderr
    files = read_all(counting.output)
    assert sorted(files) == ["manifest.json", "metrics.json", "part/numbers.bin"]
    assert json.loads(files["metrics.json"]) == {"blocks": 4}
    manifest = json.loads(files["manifest.json"])
    assert manifest["step"] == "count"
    assert manifest["choices"] == {"letter": "a"}
    assert manifest["threads"] == 1
    assert manifest["files"]["part/numbers.bin"]["bytes"] == 256
    assert "wall_seconds" in json.loads((counting.folder / "out.timings.json").read_text())
    assert sorted(path.name for path in counting.folder.iterdir()) == [
        "out",
        "out.log",
        "out.timings.json",
        "trace",
        "work",
    ]


def test_second_run_into_the_same_output_says_so_and_computes_nothing(counting):
    counting.run()
    result = counting.run()
    assert result.returncode == 0
    assert f"up to date: {counting.output}" in result.stderr
    assert counting.computed() == ["0", "1", "2", "3"]


def test_the_same_key_elsewhere_takes_the_finished_output_from_the_work_folder(counting, read_all):
    counting.run()
    result = counting.run(output=counting.folder / "other")
    assert result.returncode == 0
    assert "was taken from" in result.stderr
    assert read_all(counting.output) == read_all(counting.folder / "other")
    assert counting.computed() == ["0", "1", "2", "3"]


@pytest.mark.parametrize("flags", [("--set", "seed=2"), ("--letter", "b")])
def test_what_the_step_reads_changes_its_key(counting, flags):
    counting.run()
    result = counting.run(*flags, output=counting.folder / "other")
    assert result.returncode == 0, result.stderr
    assert len(counting.computed()) == 8


def test_a_section_that_the_step_does_not_read_leaves_its_key(counting):
    counting.run()
    assert "up to date" in counting.run("--set", "train.steps=7", "--set", "train.warmup_steps=0").stderr


def test_another_number_of_threads_is_another_key(counting):
    counting.run()
    result = counting.run("--set", "threads=2", output=counting.folder / "other")
    assert result.returncode == 0
    assert len(counting.computed()) == 8


def test_output_made_from_something_else_is_refused_without_force(counting, read_all):
    counting.run()
    before = read_all(counting.output)
    result = counting.run("--set", "seed=2")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"ava: --output {counting.output}: exists and was made from something else: pass --force to replace it"
    ]
    assert read_all(counting.output) == before
    assert counting.run("--set", "seed=2", "--force").returncode == 0
    assert read_all(counting.output) != before


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_is_no_output_of_a_step_is_refused_and_replaced_with_force(counting, kind):
    if kind == "folder":
        counting.output.mkdir()
        (counting.output / "precious.txt").write_text("mine")
    elif kind == "file":
        counting.output.write_text("mine")
    else:
        counting.output.symlink_to(counting.folder / "nowhere")
    result = counting.run()
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "--force" in result.stderr
    assert counting.computed() == []
    assert counting.run("--force").returncode == 0
    assert (counting.output / "manifest.json").is_file()
    assert not [path for path in counting.folder.iterdir() if path.name.startswith(".")]


def test_an_empty_folder_may_become_the_output(counting):
    counting.output.mkdir()
    assert counting.run().returncode == 0
    assert (counting.output / "manifest.json").is_file()


def test_force_computes_anew(counting):
    counting.run()
    assert counting.run("--force").returncode == 0
    assert len(counting.computed()) == 8


def test_a_changed_byte_in_the_present_output_is_named(counting):
    counting.run()
    path = counting.output / "part" / "numbers.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = counting.run()
    assert result.returncode == 2
    assert str(path) in result.stderr


def test_a_flipped_byte_in_an_input_is_refused_by_name(counting):
    counting.run()
    path = counting.output / "part" / "numbers.bin"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    result = counting.run("--numbers", counting.output, output=counting.folder / "next")
    assert result.returncode == 1
    assert f"ava: {path}: its bytes are not those in the manifest" in result.stderr
    assert not (counting.folder / "next").exists()


def test_missing_and_foreign_files_in_an_input_are_refused_by_name(counting):
    counting.run()
    extra = counting.output / "extra.txt"
    extra.write_text("")
    result = counting.run("--numbers", counting.output, output=counting.folder / "next")
    assert (result.returncode, f"{extra}: is not in the manifest" in result.stderr) == (1, True)
    extra.unlink()
    (counting.output / "metrics.json").unlink()
    result = counting.run("--numbers", counting.output, output=counting.folder / "next")
    assert (result.returncode, "metrics.json: is missing" in result.stderr) == (1, True)


def test_a_folder_of_outputs_stands_for_all_of_them(counting):
    counting.run(output=counting.folder / "all" / "one")
    counting.run("--letter", "b", output=counting.folder / "all" / "two")
    result = counting.run("--numbers", counting.folder / "all", output=counting.folder / "next")
    assert result.returncode == 0, result.stderr
    inputs = json.loads((counting.folder / "next" / "manifest.json").read_text())["inputs"]
    assert sorted(inputs) == ["numbers.0", "numbers.1"]


def test_output_names_the_manifests_of_its_inputs(counting):
    """Along them the way of an output can be followed: whoever changes one has to change all that were made from it."""
    counting.run()
    counting.run("--letter", "b", output=counting.folder / "other")
    folders = [counting.output, counting.folder / "other"]
    chosen = [word for folder in folders for word in ("--numbers", folder)]
    assert counting.run(*chosen, output=counting.folder / "next").returncode == 0
    found = manifest.read(counting.folder / "next")
    origins = {manifest.read(folder).digest: manifest.read(folder).sha256 for folder in folders}
    assert len(origins) == 2
    assert {found.inputs[name]: found.made_from[name] for name in ("numbers.0", "numbers.1")} == origins
    assert manifest.read(counting.output).made_from == {}


@pytest.mark.parametrize("where", ["in its place", "in the work folder"])
def test_equal_inputs_that_were_made_otherwise_rerun_nothing_and_are_named(counting, where, read_all):
    counting.run()
    flags, output = ("--numbers", counting.output), counting.folder / "next"
    counting.run(*flags, output=output)
    before, key, computed = read_all(output), manifest.read(output).key, counting.computed()
    manifest.write(counting.output, replace(manifest.read(counting.output), code="another"))
    if where == "in the work folder":
        shutil.rmtree(output)
    assert counting.run(*flags, output=output).returncode == 0
    assert counting.computed() == computed
    found = manifest.verify(output)
    assert found.made_from == {"numbers.0": manifest.read(counting.output).sha256} and found.key == key
    assert {**read_all(output), "manifest.json": b""} == {**before, "manifest.json": b""}


@pytest.mark.parametrize("change", ["changed", "removed", "replaced"])
def test_input_that_changes_while_the_step_runs_costs_the_output_and_not_the_state(counting, change, monkeypatch):
    counting.run()
    counting.run("--letter", "b", output=counting.folder / "other")
    copy = shutil.copytree(counting.output, counting.folder / "copy")

    def meanwhile(run):
        path = run.inputs["numbers"][0] / "part" / "numbers.bin"
        if change == "changed":
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        else:
            shutil.rmtree(counting.output)
        if change == "replaced":
            shutil.copytree(counting.folder / "other", counting.output)

    monkeypatch.setattr(counting.program, "_fail", lambda how, run: meanwhile(run))
    flags, output = ("--numbers", counting.output), counting.folder / "next"
    result = counting.run(*flags, output=output)
    assert result.returncode == 1
    assert f"{counting.output}" in result.stderr and "the output is not kept: put the input back" in result.stderr
    assert not output.exists() and not list(counting.work.glob("count/*/output.partial"))
    monkeypatch.undo()
    shutil.rmtree(counting.output, ignore_errors=True)
    shutil.copytree(copy, counting.output)
    computed = counting.computed()
    assert counting.run(*flags, output=output).returncode == 0
    assert counting.computed() == computed  # it went on from its state


def test_a_damaged_copy_in_the_work_folder_is_not_used(counting, read_all):
    counting.run()
    (kept,) = counting.work.glob("count/*/output/part/numbers.bin")
    kept.write_bytes(b"rubbish")
    result = counting.run(output=counting.folder / "other")
    assert result.returncode == 0
    assert "the kept copy is not used" in result.stderr
    assert read_all(counting.folder / "other") == read_all(counting.output)


def test_editing_an_output_never_reaches_the_kept_copy(counting):
    counting.run()
    path = counting.output / "part" / "numbers.bin"
    before = path.read_bytes()
    with path.open("r+b") as file:
        file.write(b"xxxx")
    (kept,) = counting.work.glob("count/*/output/part/numbers.bin")
    assert kept.read_bytes() == before


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        ("defect", "KeyError: 'no such\\nthing'"),
        ("nan", "count: loss = nan: not a finite number"),
        ("missing", "count: metrics.json lacks blocks"),
        ("library", "no space left on the disk"),
    ],
)
def test_a_failure_ends_in_one_line_and_leaves_no_output(counting, failure, line):
    result = counting.run("--log-level", "error", COUNT_FAIL=failure)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert line in result.stderr
    assert not counting.output.exists()
    assert not list(counting.work.glob("count/*/output*"))
    assert "Traceback" in (counting.folder / "out.log").read_text()


def test_nothing_secret_reaches_the_terminal_or_the_log(counting):
    result = counting.run()
    log = (counting.folder / "out.log").read_text()
    assert "password=*** at postgres://***@db/x" in log
    assert "hunter2" not in log + result.stderr


def wait_for(condition, seconds=200.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted"), (signal.SIGKILL, -9, "")],
)
def test_a_stopped_step_goes_on_and_ends_with_the_bytes_of_an_undisturbed_one(counting, read_all, number, code, word):
    undisturbed = counting.folder / "undisturbed"
    assert counting.run(output=undisturbed, work=counting.folder / "elsewhere").returncode == 0
    counting.trace.unlink()

    process = counting.start(COUNT_HOLD=counting.folder / "never")
    wait_for(lambda: len(counting.computed()) == 2)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=200)
    assert process.returncode == code
    assert "Traceback" not in err
    if word:
        assert f"ava: {word}: run the same command again" in err
    assert not counting.output.exists()

    assert counting.run().returncode == 0
    assert sorted(counting.computed()) == ["0", "1", "2", "3"]
    assert read_all(counting.output) == read_all(undisturbed)


def test_two_at_the_same_work_compute_it_once(counting, read_all):
    first = counting.start(COUNT_HOLD=counting.folder / "go on")
    wait_for(lambda: counting.computed())
    second = counting.start(output=counting.folder / "other")
    log = counting.folder / "other.log"
    wait_for(lambda: log.exists() and "another process is at the same work" in log.read_text())
    (counting.folder / "go on").touch()
    for process in (first, second):
        process.communicate(timeout=200)
        assert process.returncode == 0
    assert counting.computed() == ["0", "1", "2", "3"]
    assert read_all(counting.output) == read_all(counting.folder / "other")


def test_the_log_file_can_be_followed(counting):
    process = counting.start("--log-file", counting.folder / "follow" / "me.log", COUNT_HOLD=counting.folder / "never")
    wait_for(lambda: (counting.folder / "follow" / "me.log").exists())
    wait_for(lambda: "ava_core.count" in (counting.folder / "follow" / "me.log").read_text())
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=200)
    assert "terminated" in (counting.folder / "follow" / "me.log").read_text()
