"""How threads wait and which kernels are asked for: what reaches the libraries, and what a step's key knows of it."""

import json
import os
import subprocess
import sys

import pytest

from ava_core.config.hosts import world_size
from ava_core.config.schema import AvaConfig
from ava_core.config.threads import THREAD_VARIABLES, WAITING, let_threads_sleep, limit_threads
from ava_core.errors import ConfigError
from ava_core.runtime.identity import identify
from ava_core.runtime.inputs import Inputs
from ava_core.runtime.request import Request
from ava_core.steps.table import STEPS

PRINT = (
    "import json, os; print(json.dumps({name: os.environ.get(name) for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}))"
)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in (*WAITING, *THREAD_VARIABLES, "AVA_KERNELS"):
        monkeypatch.setenv(name, "")  # so that what the function sets is undone
        monkeypatch.delenv(name)


def test_threads_wait_asleep_unless_the_user_has_said_how(monkeypatch):
    limit_threads(3)
    assert {name: os.environ[name] for name in WAITING} == WAITING
    assert {os.environ[name] for name in THREAD_VARIABLES} == {"3"}
    for name, value in (("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "5000")):
        for each in WAITING:
            monkeypatch.delenv(each, raising=False)
        monkeypatch.setenv(name, value)
        let_threads_sleep()
        assert {each: os.environ[each] for each in WAITING if each in os.environ} == {name: value}


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active"}])
def test_every_command_tells_its_libraries_and_its_children(given):
    """Before torch is loaded, which reads it once."""
    program = f"""
import subprocess, sys
from ava_core.cli import main
main.app = lambda **_: print("torch" in sys.modules, subprocess.run([sys.executable, "-c", {PRINT!r}]).returncode)
main.main()
"""
    environment = {k: v for k, v in os.environ.items() if k not in WAITING} | given
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    seen, line = done.stdout.splitlines()
    expected = {"GOMP_SPINCOUNT": None, **given} if given else WAITING
    assert (json.loads(seen), line) == (expected, "False 0")


COMPUTE = {"train", "preferences", "sft", "reward", "dpo", "grpo", "index", "quantize", "evaluate", "register"}
"""Steps that run the model, which has kernels."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """One work folder for all: it keeps what was read of the sources."""
    return tmp_path_factory.mktemp("work")


def identity(name, work):
    config = AvaConfig()
    request = Request(spec=STEPS[name], config=config, inputs={}, choices={}, output=work / "output", work=work)
    assert world_size(config.train) == 1
    return identify(request, Inputs({}, {}))


@pytest.mark.parametrize("name", STEPS)
def test_kernels_that_are_asked_for_are_in_the_key_of_each_step_that_has_any(name, work, monkeypatch):
    plain = identity(name, work)
    monkeypatch.setenv("AVA_KERNELS", "auto")
    assert identity(name, work) == plain
    monkeypatch.setenv("AVA_KERNELS", "onednn")
    asked = identity(name, work)
    assert (asked.key != plain.key) == (name in COMPUTE)
    assert asked.choices == ({"kernels": "onednn"} if name in COMPUTE else {})


def test_how_threads_wait_is_in_no_key(work, monkeypatch):
    before = {name: identity(name, work).key for name in STEPS}
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert {name: identity(name, work).key for name in STEPS} == before


def test_kernels_that_there_are_not_are_refused(work, monkeypatch):
    monkeypatch.setenv("AVA_KERNELS", "avx2")
    told = "environment: AVA_KERNELS = 'avx2': must be one of auto, native, avx512, emulated, onednn, off"
    with pytest.raises(ConfigError, match=told):
        identity("train", work)
    done = subprocess.run([sys.executable, "-m", "ava_core.cli.main", "config", "show"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ava: {told}\n"


def test_the_provider_that_is_asked_for_is_in_the_keys_of_steps_that_run_graphs(work, monkeypatch):
    monkeypatch.setenv("AVA_ONNX_PROVIDER", "auto")
    before = {name: identity(name, work) for name in STEPS}
    monkeypatch.setenv("AVA_ONNX_PROVIDER", "cpu")
    after = {name: identity(name, work) for name in STEPS}
    changed = {name for name in STEPS if after[name].key != before[name].key}
    assert {"quantize", "evaluate"} <= changed
    assert not changed & {"preprocess", "train", "gate"}
    assert after["quantize"].choices["onnx_provider"] == "cpu"


def test_a_provider_that_there_is_not_is_refused_by_every_command(monkeypatch):
    monkeypatch.setenv("AVA_ONNX_PROVIDER", "rocm")
    done = subprocess.run([sys.executable, "-m", "ava_core.cli.main", "config", "show"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ava: environment: AVA_ONNX_PROVIDER = 'rocm': must be one of auto, cpu, cuda\n"
