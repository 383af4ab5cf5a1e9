"""The program that the launcher's container runs, up to the point where mpirun takes over."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ava_core.errors import AvaError, ConfigError
from ava_core.launching import mpi
from ava_core.launching.runtime import node_command
from ava_core.launching.trainjob import job_command, job_environment
from ava_core.runtime.code import code_of
from ava_core.steps.table import STEPS

OTHER = "192.0.2.7"
"""An address that no machine has (RFC 5737)."""


@pytest.fixture
def job(tmp_path):
    """Hostfile and keys of a job, and the folder with an `mpirun` that prints what it is given."""
    ssh, programs = tmp_path / "ssh", tmp_path / "bin"
    ssh.mkdir()
    programs.mkdir()
    (ssh / "id_rsa.pub").write_text("ecdsa-sha2-nistp521 AAAAsomething job\n")
    hostfile = tmp_path / "hostfile"
    hostfile.write_text(f"{OTHER} slots=1\n127.0.0.1 slots=1\n")
    mpirun = programs / "mpirun"
    mpirun.write_text(f"#!{sys.executable}\nimport os, sys\nprint(*sys.argv[1:], sep='\\n')\nprint(dict(os.environ))\n")
    mpirun.chmod(mpirun.stat().st_mode | stat.S_IXUSR)
    return hostfile, ssh, programs


def run(job, *arguments, **environment):
    hostfile, ssh, programs = job
    command = job_command(arguments or ["train", "--output", "o"], nodes=2, processes=3, hostfile=hostfile, ssh=ssh)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command, capture_output=True, text=True, timeout=250, env={**os.environ, "PATH": path, **environment}
    )


def test_mpirun_gets_this_machine_first_and_runs_ava_in_every_rank(job):
    result = run(job, "train", "--params-yaml", "seed: 1\n", NCCL_DEBUG="INFO", SOMETHING="else")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    hostfile = Path(lines[lines.index("--hostfile") + 1])
    assert hostfile.read_text() == f"127.0.0.1 slots=3\n{OTHER} slots=3\n"
    assert lines[lines.index("-np") + 1] == "6"
    assert lines[lines.index("--map-by") + 1] == "ppr:3:node"
    assert lines[lines.index("--bind-to") + 1] == "none"
    assert lines[-8:-2] == [sys.executable, "-m", "ava_core.cli.main", "train", "--params-yaml", "seed: 1"]
    assert "'MASTER_ADDR': '127.0.0.1'" in lines[-1]
    exported = {lines[index + 1] for index, line in enumerate(lines) if line == "-x"}
    assert {"MASTER_ADDR", "MASTER_PORT", "PATH", "NCCL_DEBUG"} <= exported
    assert "SOMETHING" not in exported
    assert not any("=" in name for name in exported)


def test_port_of_rank_0_is_free(tmp_path):
    _, port = mpi.order_hosts([OTHER, "127.0.0.1"], 2)
    socket.create_server(("127.0.0.1", port)).close()


def test_hostfile_may_name_more_machines_than_are_wanted():
    assert mpi.order_hosts([OTHER, "127.0.0.1"], 1)[0] == ["127.0.0.1"]


def test_hostfile_without_this_machine_is_refused():
    with pytest.raises(AvaError, match=r"none of 192\.0\.2\.7 is this machine.*runLauncherAsNode"):
        mpi.order_hosts([OTHER], 1)


def test_too_few_machines_are_refused():
    with pytest.raises(AvaError, match="has 1 machines, but 2 are wanted"):
        mpi.order_hosts(["127.0.0.1"], 2)


@pytest.mark.parametrize("text", ["", "# nothing\n\n"])
def test_empty_hostfile_is_refused(tmp_path, text):
    (tmp_path / "hostfile").write_text(text)
    with pytest.raises(ConfigError, match="names no node"):
        mpi.read_hosts(tmp_path / "hostfile")


def test_ssh_trusts_only_the_jobs_own_key(job, tmp_path):
    _, ssh, _ = job
    text = mpi.write_ssh_config(tmp_path, ssh).read_text()
    assert "StrictHostKeyChecking yes" in text
    assert (tmp_path / "known_hosts").read_text() == "* ecdsa-sha2-nistp521 AAAAsomething job\n"


def test_other_code_than_the_starters_is_refused_before_any_work(job):
    hostfile, ssh, _ = job
    command = job_command(["train"], nodes=2, processes=1, code="0" * 64, hostfile=hostfile, ssh=ssh)
    result = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, timeout=250)
    assert result.returncode == 2
    assert result.stderr.startswith("ava: the image of the runtime holds other code")
    mpi._require_code("train", code_of(STEPS["train"]).digest)


def test_missing_mpirun_is_one_line(job):
    hostfile, ssh, _ = job
    command = job_command(["train"], nodes=2, processes=1, hostfile=hostfile, ssh=ssh)
    result = subprocess.run(
        [sys.executable, *command[1:]], capture_output=True, text=True, timeout=250, env={"PATH": str(hostfile.parent)}
    )
    assert result.returncode == 1
    assert result.stderr == "ava: mpirun: not found: the image needs Open MPI and an ssh client\n"


def test_secrets_become_variables_of_this_machine_only(job, tmp_path):
    hostfile, ssh, programs = job
    secrets = tmp_path / "secrets"
    (secrets / "..data").mkdir(parents=True)  # as Kubernetes mounts them
    (secrets / "MLFLOW_TRACKING_TOKEN").write_text("s3cret\n")
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    command = job_command(["train"], nodes=2, processes=1, hostfile=hostfile, ssh=ssh, secrets=secrets)
    result = subprocess.run(
        [sys.executable, *command[1:]], capture_output=True, text=True, timeout=250, env={**os.environ, "PATH": path}
    )
    *arguments, environment = result.stdout.splitlines()
    assert "'MLFLOW_TRACKING_TOKEN': 's3cret'" in environment
    assert "MLFLOW_TRACKING_TOKEN" not in arguments


def test_address_with_a_password_is_not_put_into_the_job():
    given = {"AVA_TRACKING_URI": "http://me:secret@mlflow", "AVA_PIPELINE_RUN": "r", "HOME": "/root"}
    assert job_environment(given) == {"AVA_PIPELINE_RUN": "r"}


def test_nodes_let_in_the_jobs_key_and_nobody_else():
    command = node_command(Path("/keys"))
    assert command[0] == "/usr/sbin/sshd"
    assert {"PasswordAuthentication=no", "HostKey=/keys/id_rsa", "AuthorizedKeysFile=/keys/authorized_keys"} <= set(
        command
    )
