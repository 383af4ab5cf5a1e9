"""Workers that share a sweep in PostgreSQL: processes of their own, one of which is killed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ava_core.sweeping.storage import require_storage
from ava_core.sweeping.sweep import run_sweep
from tests.postgres_server import Postgres, require_postgres

pytestmark = pytest.mark.slow
RATES = [0.3, 0.1, 0.03, 0.01, 0.003, 0.001]
SPACE = {"parameters": {"train.learning_rate": {"values": RATES}}}
WORKER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from tests.sweeping.conftest import Fakes
from tests.sweeping.test_postgresql import request_of
from ava_core.sweeping.sweep import run_sweep
run_sweep(request_of(Fakes(Path(sys.argv[1]), SimpleNamespace(setenv=lambda *_: None)), sys.argv[2]))
"""


def request_of(fakes, storage):
    request = fakes.request(**SPACE)
    object.__setattr__(request, "storage", storage)
    return request


@pytest.fixture
def storage(monkeypatch):
    """Address of an empty database; the password is in the environment."""
    binaries = require_postgres()
    # Not below pytest's folder, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="ava-postgres-"))
    postgres = Postgres(binaries, folder, "a-secret", user="ava")
    try:
        postgres.make()
        postgres.start()
        postgres.create("sweeps")
        monkeypatch.setenv("PGPASSWORD", "a-secret")
        yield require_storage(f"postgresql://ava@127.0.0.1:{postgres.port}/sweeps")
    finally:
        if hasattr(postgres, "process"):
            postgres.stop()
        shutil.rmtree(folder)


def test_two_workers_share_the_trials_and_one_takes_over_what_a_killed_one_left(fakes, storage):
    fakes.tell(hang=[0])
    told = {"FAKE": json.dumps({"journal": str(fakes.journal), "hang": [0]})}
    command = [sys.executable, "-c", WORKER, str(fakes.folder), storage]
    killed = subprocess.Popen(command, env={**os.environ, **told})
    deadline = time.monotonic() + 200
    while not fakes.calls() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    fakes.tell()
    other = subprocess.Popen(command, env={**os.environ, "FAKE": json.dumps({"journal": str(fakes.journal)})})
    while len(fakes.calls()) < 4 and other.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    assert other.wait(200) == 0
    results = run_sweep(request_of(fakes, storage))  # takes over, if the other one had ended before the kill
    assert results.counts() == {"complete": 6}
    assert results.best.settings == {"train.learning_rate": 0.01}
    again = [call for call in fakes.calls() if call["number"] == 0]
    assert sorted(call["number"] for call in fakes.calls()) == [0, 0, 1, 2, 3, 4, 5]
    assert again[0]["sets"] == again[1]["sets"] and again[1]["again"]
    assert "a-secret" not in (fakes.folder / "out" / "sweep.json").read_text()
