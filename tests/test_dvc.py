"""Real DVC over the real steps, on a few scenes and a model that trains in seconds."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from ava_core.registry import list_versions
from ava_core.runtime import manifest
from ava_core.runtime.digests import digest_tree
from ava_core.steps.alignment import ALIGNMENT, ALIGNMENT_DATA
from ava_core.steps.table import STEPS
from tests.conftest import _finished as finished

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("keys", "preprocess", "train", "quantize@int8", "quantize@int4", "evaluate", "gate", "register", "figures")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Workspace:
    """A checkout with DVC in it, and the programs of this environment on PATH."""

    def __init__(self, folder: Path, tracking_uri: str) -> None:
        self.folder = folder
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("AVA_", "MLFLOW_", "GIT_"))}
        self.environment = keep | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "AVA_TRACKING_URI": tracking_uri,
            "AVA_WORK": str(folder / ".ava" / "work"),
            "DVC_NO_ANALYTICS": "1",
        }

    def run(self, *command: str, quiet: bool = False) -> str:
        """Standard output of a program that succeeds; with `quiet` it may say nothing on standard error."""
        result = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        assert not (quiet and result.stderr), f"{command}\n{result.stderr}"
        return result.stdout

    def digests(self) -> dict[str, str]:
        """Digest of every output folder that depends on nothing but its inputs."""
        names = ("shards", "model", "quantized/int8", "quantized/int4", "evaluation")
        return {name: digest_tree(self.folder / "outputs" / name) for name in names}


def stages_run(lines: str) -> list[str]:
    return re.findall(r"Running stage '(.+?)'", lines)


def promoted(workspace: Workspace) -> tuple[float, float]:
    """What the registration says: whether it was promoted, and its version."""
    figures = json.loads((workspace.folder / "outputs" / "registration" / "metrics.json").read_text())
    return figures["promoted"], figures["model_version"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, mlflow_server, corpus_text):
    from tests.conftest import TINY_PARAMS, merged

    folder = tmp_path_factory.mktemp("dvc") / "ava"
    for name in ("ava_core", "components", "pipelines", "configs", ".dvc", ".dvcignore", ".gitignore", "dvc.yaml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache"))
        else:
            shutil.copy(source, folder / name)
    plays = folder / "data" / "raw" / "shakespeare"
    plays.mkdir(parents=True)
    for index, start in enumerate(range(0, 48_000, 4_000)):
        (plays / f"play-{index:02}.md").write_text(corpus_text[start : start + 4_000])
    listed = yaml.safe_load((ROOT / "params.yaml").read_text())
    source = {"data": {"sources": [{"path": "shakespeare", "format": "markdown"}]}}
    rate = {"train": {"learning_rate": 0.02}}
    register = {"register": {"model_name": "dvc-test", "gate": {"max_bits_per_byte": {"at_most": 9.0}}}}
    params = merged(merged(merged(merged(listed, TINY_PARAMS), source), rate), register)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    workspace = Workspace(folder, mlflow_server)
    workspace.run("git", "init", "--quiet")
    workspace.run("git", "config", "user.email", "tests@example.org")
    workspace.run("git", "config", "user.name", "tests")
    workspace.run("dvc", "add", "data/raw/shakespeare")
    workspace.run("git", "add", ".")
    workspace.run("git", "commit", "--quiet", "-m", "start")
    workspace.run("dvc", "repro")
    workspace.run("git", "add", ".")
    workspace.run("git", "commit", "--quiet", "-m", "results")
    return workspace


def test_all_stages_leave_finished_outputs(workspace):
    for name in ("shards", "model", "quantized/int8", "quantized/int4", "evaluation", "gate", "registration"):
        assert (workspace.folder / "outputs" / name / "manifest.json").is_file()
    locked = yaml.safe_load((workspace.folder / "dvc.lock").read_text())["stages"]
    assert sorted(locked) == sorted(STAGES)


def test_second_run_asks_the_registry_and_computes_nothing(workspace):
    before = (workspace.folder / "dvc.lock").read_bytes()
    assert stages_run(workspace.run("dvc", "repro")) == ["keys", "gate", "register"]
    assert (workspace.folder / "dvc.lock").read_bytes() == before


def test_model_to_begin_from_decides_by_its_contents(workspace):
    """The stage `keys` runs whatever DVC knows, and what follows only where a key has changed."""
    params, key = workspace.folder / "params.yaml", workspace.folder / "outputs" / "keys" / "train.json"
    text, base = params.read_text(), workspace.folder / "base"
    shutil.copytree(workspace.folder / "outputs" / "model", base)
    try:
        values = yaml.safe_load(text)
        values["train"]["init"] = "base"
        params.write_text(yaml.safe_dump(values))
        workspace.run("dvc", "repro", "--single-item", "keys")
        before = json.loads(key.read_text())
        assert before["inputs"]["init"] and "init" not in before["values"]["train"]
        (base / "note.txt").write_text("another model")
        (base / manifest.NAME).unlink()
        finished(base, "train", {})
        assert stages_run(workspace.run("dvc", "repro", "--single-item", "keys")) == ["keys"]
        assert json.loads(key.read_text())["inputs"] != before["inputs"]
        assert "train" in workspace.run("dvc", "status", "train")
    finally:
        params.write_text(text)
        shutil.rmtree(base)
        workspace.run("dvc", "repro", "--single-item", "keys")


def test_run_registers_in_whatever_registry_it_is_given(workspace, tmp_path):
    other = Workspace(workspace.folder, f"sqlite:///{tmp_path / 'other.db'}")
    assert "train" not in stages_run(other.run("dvc", "repro"))
    (version,) = list_versions("dvc-test", other.environment["AVA_TRACKING_URI"])
    assert version.aliases == ("challenger", "champion")
    assert promoted(workspace) == (1.0, 1.0)
    workspace.run("dvc", "repro")
    workspace.run("git", "diff", "--exit-code", "dvc.lock")


def test_another_learning_rate_reruns_training_and_what_follows_it(workspace):
    before = workspace.digests()
    params = (workspace.folder / "params.yaml").read_text()
    (workspace.folder / "params.yaml").write_text(params.replace("learning_rate: 0.02", "learning_rate: 0.01"))
    lines = workspace.run("dvc", "repro")
    changed = workspace.digests()
    (workspace.folder / "params.yaml").write_text(params)
    workspace.run("dvc", "repro")
    assert "Stage 'preprocess' didn't change" in lines
    for stage in STAGES[2:]:
        assert f"Running stage '{stage}'" in lines, lines
    assert [name for name in before if before[name] != changed[name]] == list(before)[1:]
    assert workspace.digests() == before


def test_comment_in_the_code_reruns_nothing_and_a_constant_what_runs_it(workspace, tmp_path):
    """With the code that lies in the workspace, where `ava` otherwise runs that of this checkout."""
    ava = tmp_path / "ava"
    ava.write_text(
        f"#!{sys.executable}\nfrom ava_core.cli import checkout, main\n"
        "checkout.refuse_copied_environment = lambda *_: None\n"
        "main.main()\n"
    )
    ava.chmod(0o755)
    own = Workspace(workspace.folder, workspace.environment["AVA_TRACKING_URI"])
    own.environment["PATH"] = os.pathsep.join([str(tmp_path), own.environment["PATH"]])
    own.environment["PYTHONPATH"] = str(workspace.folder)
    module = workspace.folder / "ava_core" / "evaluation" / "diversity.py"
    text = module.read_text()
    try:
        module.write_text(f"{text}\n# A comment.\n")
        assert stages_run(own.run("dvc", "repro")) == ["keys", "gate", "register"]
        module.write_text(f"{text}\nADDED = 1\n")
        assert set(stages_run(own.run("dvc", "repro"))) == {"keys", "evaluate", "gate", "register", "figures"}
    finally:
        module.write_text(text)
        own.run("dvc", "repro")


def test_comment_in_a_preset_reruns_nothing(workspace):
    preset = workspace.folder / "configs" / "cpu" / "tiny.yaml"
    text = preset.read_text()
    try:
        preset.write_text(f"{text}# A comment.\n")
        assert stages_run(workspace.run("dvc", "repro")) == ["keys", "gate", "register"]
    finally:
        preset.write_text(text)
        workspace.run("dvc", "repro", "--single-item", "keys")


def test_metrics_are_shown_without_an_error_and_in_a_few_columns(workspace):
    shown = json.loads(workspace.run("dvc", "metrics", "show", "--json", quiet=True))
    figures = shown[""]["data"]["outputs/figures.json"]["data"]
    not_by_default = {spec.name for spec in (*ALIGNMENT_DATA, *ALIGNMENT)} | {"index"}
    assert set(figures) == {"quantize-int8", "quantize-int4", *STEPS} - {"quantize"} - not_by_default
    for name, spec in STEPS.items():
        for shown_as in figures:
            if shown_as.partition("-")[0] == name:
                assert set(figures[shown_as]) == set(spec.headlines)
    workspace.run("dvc", "metrics", "diff", "HEAD", quiet=True)
    heading, *rows = workspace.run("dvc", "exp", "show", "--csv", quiet=True).splitlines()
    assert "!" not in "".join(rows)
    columns = {column.removeprefix("outputs/figures.json:") for column in heading.split(",")}
    assert {f"{name}.{figure}" for name, found in figures.items() for figure in found} <= columns
    assert sum(len(found) for found in figures.values()) == 18


def test_plot_of_the_losses_has_a_value_at_each_of_its_points(workspace):
    workspace.run("dvc", "plots", "show", "--out", "plots", quiet=True)
    page = (workspace.folder / "plots" / "index.html").read_text()
    start = page.index("[", page.index('"values"'))
    points = json.JSONDecoder().raw_decode(page, start)[0]
    assert {point["filename::field"].partition("::")[0] for point in points} == {"history.csv", "validation.csv"}
    for point in points:
        assert float(point["dvc_inferred_y_value"]) > 1 and float(point["step"]) >= 1


def clone_of(workspace, folder, **settings):
    """A second clone with the results pulled from a remote; keywords are DVC's settings, with `_` for `.`."""
    remote = folder / "remote"
    workspace.run("dvc", "remote", "add", "--force", "--local", "--default", "store", str(remote))
    # What is registered may have changed since the last commit: the aliases with every model that another test trained.
    workspace.run("git", "commit", "--quiet", "--allow-empty", "--all", "-m", "as it is now")
    workspace.run("dvc", "push")
    clone = Workspace(folder / "clone", workspace.environment["AVA_TRACKING_URI"])
    workspace.run("git", "clone", "--quiet", str(workspace.folder), str(clone.folder))
    clone.run("dvc", "remote", "add", "--local", "--default", "store", str(remote))
    for name, value in settings.items():
        clone.run("dvc", "config", "--local", name.replace("_", "."), value)
    clone.run("dvc", "pull")
    return clone


def test_pushed_results_are_restored_in_a_second_clone_and_leave_nothing_to_run(workspace, tmp_path):
    clone = clone_of(workspace, tmp_path)
    assert clone.digests() == workspace.digests()
    assert stages_run(clone.run("dvc", "repro")) == ["keys", "gate", "register"]


def test_outputs_that_are_links_into_dvcs_cache_are_used_like_files(workspace, tmp_path):
    """`cache.type symlink`, as DVC's guide for shared servers has it: what a step writes is read-only and elsewhere."""
    linked = clone_of(workspace, tmp_path, cache_type="symlink")
    outputs = linked.folder / "outputs"
    for name in ("model/model.safetensors", "quantized/int8/model.onnx", "shards/train/state.json"):
        assert (outputs / name).is_symlink()
    assert (linked.folder / "data/raw/shakespeare/play-00.md").is_symlink()
    assert stages_run(linked.run("dvc", "repro")) == ["keys", "gate", "register"]
    for model in ("outputs/model", "outputs/quantized/int8"):
        said = linked.run("ava", "generate", "--model", model, "--prompt", "To be, or", "--max-new-tokens", "4")
        assert said.startswith("To be, or")
    # Everything anew from links: each stage replaces links by files, and DVC these by links before the next one.
    linked.run("dvc", "repro", "--force")
    assert (outputs / "evaluation/metrics.json").is_file() and (outputs / "model/model.safetensors").is_symlink()
    assert linked.digests() == workspace.digests()
    assert serves(linked, outputs / "quantized" / "int8")


def serves(workspace, folder):
    """Whether `ava serve` gets as far as to answer."""
    command = ["ava", "serve", "--model", str(folder), "--port", "0"]
    process = subprocess.Popen(
        command,
        cwd=workspace.folder,
        env=workspace.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                with urllib.request.urlopen(f"{found[0]}/healthz", timeout=60) as answer:
                    return answer.status == 200
        raise AssertionError("".join(lines))
    finally:
        process.terminate()
        process.wait()


def test_host_runner_of_the_kfp_pipeline_ends_with_the_same_digests(workspace, tmp_path):
    host = Workspace(workspace.folder, workspace.environment["AVA_TRACKING_URI"])
    host.environment["AVA_WORK"] = str(tmp_path / "work")  # so that it computes everything itself
    host.run("python", "-m", "pipelines.local", "--params", "params.yaml", "--runs", str(tmp_path / "runs"))
    (run,) = (tmp_path / "runs").glob("ava-*")
    files = {
        "shards": run / "preprocess" / "shards",
        "model": run / "train" / "model",
        "quantized/int8": run / "quantize-int8" / "quantized",
        "quantized/int4": run / "quantize-int4" / "quantized",
        "evaluation": run / "evaluate" / "evaluation",
    }
    assert {name: digest_tree(folder) for name, folder in files.items()} == workspace.digests()


def test_experiment_with_another_learning_rate_runs(workspace):
    before = workspace.digests()
    workspace.run("dvc", "exp", "run", "--name", "lower-rate", "-S", "train.learning_rate=0.005")
    after = workspace.digests()
    listed = workspace.run("dvc", "exp", "list", "--all")
    assert after["shards"] == before["shards"]
    assert after["model"] != before["model"]
    assert "lower-rate" in listed


def test_sweep_that_is_queued_runs_and_its_results_are_those_of_the_experiments(workspace):
    space = {
        "name": "rates",
        "method": "grid",
        "metric": {"name": "validation_bits_per_byte"},
        "parameters": {"train.learning_rate": {"values": [0.0001, 0.01]}},
    }
    (workspace.folder / "sweep.yaml").write_text(yaml.safe_dump(space))
    sweep = ("ava", "sweep", "params.yaml", "--space", "sweep.yaml", "--via", "dvc")
    assert workspace.run(*sweep).startswith("2 experiments queued")
    assert "2 queued" in workspace.run(*sweep, "--results")
    ran = workspace.run("dvc", "exp", "run", "--run-all")
    assert "runs the code in" not in ran
    shown = workspace.run(*sweep, "--results")
    results = json.loads((workspace.folder / "outputs" / "sweeps" / "rates" / "sweep.json").read_text())
    assert results["states"] == {"complete": 2} and results["best"] == 1, shown
    assert [row["number"] for row in results["rows"]] == [1, 0]
    workspace.run("dvc", "exp", "apply", "rates-0001")
    metrics = json.loads((workspace.folder / "outputs" / "model" / "metrics.json").read_text())
    assert results["rows"][0]["values"] == {"validation_bits_per_byte": metrics["validation_bits_per_byte"]}
    assert f"{metrics['validation_bits_per_byte']:.5g}" in shown
    workspace.run("git", "checkout", "--quiet", "--", "params.yaml")
    workspace.run("dvc", "repro")


def test_queued_experiment_is_registered_with_the_checkouts_server(workspace, mlflow_server):
    """It runs in a copy of the checkout, which DVC deletes."""
    local = Workspace(workspace.folder, "")
    (workspace.folder / ".ava" / "mlflow").mkdir(parents=True, exist_ok=True)
    note = workspace.folder / ".ava" / "mlflow" / "server.json"
    note.write_text(json.dumps({"address": mlflow_server, "pid": 0, "started": ""}))
    try:
        local.run("dvc", "exp", "run", "--queue", "--name", "queued", "-S", "register.model_name=dvc-queued")
        local.run("dvc", "queue", "start")
        deadline = time.monotonic() + 600
        while "Success" not in (shown := local.run("dvc", "queue", "status")) and time.monotonic() < deadline:
            assert "Failed" not in shown, local.run("dvc", "queue", "logs", "queued")
            time.sleep(2)
    finally:
        local.run("dvc", "queue", "stop")
    local.run("dvc", "exp", "apply", "queued")
    (version,) = list_versions("dvc-queued", mlflow_server)
    assert version.aliases == ("challenger", "champion")
    assert promoted(workspace) == (1.0, 1.0)
    assert sorted(path.name for path in note.parent.iterdir()) == ["server.json"]
    assert not list((workspace.folder / ".dvc" / "tmp" / "exps").glob("tmp*/.ava"))
