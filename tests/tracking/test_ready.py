"""The look at the server before a pipeline begins."""

import pytest

from ava_core.tracking.faults import DeletedExperimentError
from ava_core.tracking.ready import main, require_ready


@pytest.fixture
def deleted(mlflow_server, request, monkeypatch):
    """The name of a deleted experiment on the server that the environment names."""
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    client.delete_experiment(client.create_experiment(request.node.name))
    monkeypatch.setenv("AVA_TRACKING_URI", mlflow_server)
    return request.node.name


def test_deleted_experiment_is_a_line_and_exit_code_1(deleted, mlflow_server, tmp_path, capsys):
    params = tmp_path / "params.yaml"
    params.write_text(f"register: {{experiment: {deleted}}}\n")
    for given in (["--experiment", deleted], ["--params", str(params)]):
        assert main(given) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"register.experiment = {deleted}: is deleted on {mlflow_server}: name ")
        assert err.count("\n") == 1 and "`mlflow experiments restore -x " in err


def test_experiment_that_nobody_has_made_is_no_fault_and_is_not_made(mlflow_server, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("AVA_TRACKING_URI", mlflow_server)
    assert main(["--experiment", "nobody-made-it"]) == 0
    assert MlflowClient(mlflow_server).get_experiment_by_name("nobody-made-it") is None


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:///nowhere.db", ""])
def test_server_that_can_not_be_asked_passes(uri):
    require_ready("any", {"AVA_TRACKING_URI": uri})


def test_wrong_parameters_are_exit_code_2(tmp_path, capsys):
    assert main(["--params", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_experiment_found_deleted_has_a_type_of_its_own(deleted, mlflow_server):
    with pytest.raises(DeletedExperimentError):
        require_ready(deleted, {"MLFLOW_TRACKING_URI": mlflow_server})
