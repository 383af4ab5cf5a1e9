"""What one submit makes, with the real KFP client against a server that holds it to the API's description."""

import re
import subprocess
import sys

import pytest
import yaml

from ava_core.errors import AvaError, ConfigError
from pipelines.compile import compile_pipeline
from pipelines.submit.__main__ import main
from pipelines.submit.submission import plugin_options
from tests.pipelines.submit.conftest import IMAGE


def test_pipeline_version_experiment_and_run_are_made(server, submit, capsys):
    assert submit(server, "--tracking-uri", "http://mlflow:5000") == 0
    state = server.state
    (pipeline,), (version,), (experiment,), (run,) = state.pipelines, state.versions, state.experiments, state.runs
    assert pipeline["name"] == experiment["display_name"] == "ava"
    assert run["experiment_id"] == experiment["experiment_id"]
    assert run["pipeline_version_reference"] == {
        "pipeline_id": pipeline["pipeline_id"],
        "pipeline_version_id": version["pipeline_version_id"],
    }
    parameters = run["runtime_config"]["parameters"]
    assert parameters["data_uri"] == "s3://bucket/raw" and parameters["tracking_uri"] == "http://mlflow:5000"
    assert yaml.safe_load(parameters["params_yaml"])["train"]["steps"] == 70
    commit = parameters["git_commit"]
    assert re.fullmatch(r"[0-9a-f]{40}|", commit)
    assert re.fullmatch(rf"ava ({commit[:12] or 'uncommitted'}) [0-9a-f]{{12}}", run["display_name"])
    assert "plugins_input" not in run
    assert IMAGE in str(version["pipeline_spec"])
    output = capsys.readouterr()
    assert output.out == (
        f"run {run['run_id']}  {run['display_name']}\npage {server.address}/#/runs/details/{run['run_id']}\n"
    )
    assert output.err == ""


def test_both_documents_of_the_compiled_pipeline_arrive_whole(server, submit):
    submit(server, "--set", "kubernetes.work.claim=ava-work")
    (version,) = server.state.versions
    sent = version["pipeline_spec"]
    assert set(sent) == {"pipeline_spec", "platform_spec"}
    assert "ava-work" in str(sent["platform_spec"]) and "ava-work" not in str(sent["pipeline_spec"])


def test_uploaded_is_what_is_compiled(server, submit):
    submit(server)
    spec = server.state.versions[0]["pipeline_spec"]
    documents = list(yaml.safe_load_all(compile_pipeline(["int8"], IMAGE)))
    assert spec.get("pipeline_spec", spec) == documents[0]
    assert spec.get("platform_spec") == (documents[1] if len(documents) > 1 else None)


def test_same_thing_twice_makes_a_second_run_and_no_second_version(server, submit):
    submit(server)
    submit(server)
    state = server.state
    assert len(state.runs) == 2 and state.runs[0]["display_name"] == state.runs[1]["display_name"]
    assert len(state.pipelines) == len(state.versions) == len(state.experiments) == 1


def test_another_ir_makes_a_new_version_and_another_configuration_does_not(server, submit):
    state = server.state
    submit(server)
    submit(server, "--set", "train.learning_rate=0.1")
    assert len(state.versions) == 1 and state.runs[0]["display_name"] != state.runs[1]["display_name"]
    submit(server, "--set", "quantize.schemes=[int8,int4]")
    assert len(state.versions) == 2 and len(state.pipelines) == 1


def test_version_is_found_among_more_than_a_page_of_them(server, submit):
    submit(server)
    (pipeline,), (version,) = server.state.pipelines, server.state.versions
    older = [{**version, "name": f"v{n}", "display_name": f"v{n}", "pipeline_version_id": f"v{n}"} for n in range(25)]
    server.state.versions[:0] = older
    submit(server)
    assert len(server.state.versions) == 26 and pipeline is server.state.pipelines[0]


def test_model_to_begin_from_reaches_the_pods_by_address_or_from_the_registry(server, submit):
    with pytest.raises(ConfigError, match=r"train.init = outputs/base: no pod sees that folder: give models:/"):
        submit(server, "--set", "train.init=outputs/base")
    assert server.state.runs == []
    submit(server, "--set", "train.init=s3://bucket/base")
    assert server.state.runs[0]["runtime_config"]["parameters"]["init_uri"] == "s3://bucket/base"
    submit(server, "--set", "train.init=models:/ava-moe@champion", "--set", "model.dropout=0.1")
    parameters = server.state.runs[1]["runtime_config"]["parameters"]
    assert "init_uri" not in parameters
    given = yaml.safe_load(parameters["params_yaml"])
    assert given["model"] == {"dropout": 0.1} and given["train"]["init"] == "models:/ava-moe@champion"


def test_teacher_reaches_the_pods_from_the_registry_alone(server, submit):
    for teacher in ("outputs/large", "s3://bucket/large"):
        with pytest.raises(ConfigError, match=rf"train.teacher.model = {teacher}: the pipeline's tasks don't see that"):
            submit(server, "--set", f"train.teacher.model={teacher}")
    assert server.state.runs == []
    submit(server, "--set", "train.teacher.model=models:/ava-large@champion")
    given = yaml.safe_load(server.state.runs[0]["runtime_config"]["parameters"]["params_yaml"])
    assert given["train"]["teacher"]["model"] == "models:/ava-large@champion"


def test_options_of_the_servers_plugins_reach_the_run(server, submit):
    submit(server, "--plugin", "mlflow.experiment_name=ava prod", "--plugin", "mlflow.disabled=false")
    assert server.state.runs[0]["plugins_input"] == {"mlflow": {"experiment_name": "ava prod", "disabled": False}}


def test_address_that_a_plugin_gives_is_printed_and_its_failure_said(server, submit, capsys):
    entries = {"run_url": {"value": "http://mlflow/runs/7", "render_type": "URL"}, "experiment_id": {"value": "7"}}
    server.state.plugins_output = {
        "mlflow": {"entries": entries, "state": "PLUGIN_FAILED", "state_message": "no answer"}
    }
    assert submit(server) == 0
    output = capsys.readouterr()
    assert output.out.endswith("\nmlflow http://mlflow/runs/7\n")
    assert output.err == "pipelines.submit: mlflow: no answer\n"


def test_plugin_option_that_is_digits_stays_text():
    assert plugin_options(["mlflow.experiment_id=42"]) == {"mlflow": {"experiment_id": "42"}}


def test_server_of_several_users_wants_a_namespace_and_gets_it(server, submit):
    server.state.multi_user = True
    with pytest.raises(AvaError, match="serves several users: give yours with --namespace"):
        submit(server)
    assert server.state.pipelines == []
    assert submit(server, "--namespace", "team-a") == 0
    assert server.state.pipelines[0]["namespace"] == server.state.experiments[0]["namespace"] == "team-a"
    assert {call.query.get("namespace") for call in server.calls if call.operation.endswith("ListPipelines")} == {
        "team-a"
    }


def test_submit_of_the_same_id_makes_no_second_run(server, submit, capsys):
    submit(server, "--submit-id", "build-17")
    submit(server, "--submit-id", "build-17")
    first, _, second, _ = capsys.readouterr().out.splitlines()
    assert first == second and len(server.state.runs) == 1
    submit(server, "--submit-id", "build-18")
    assert len(server.state.runs) == 2


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "--host: missing"),
        (["--host", "kubeflow"], "--host kubeflow: must be http"),
        (["--host", "http://h"], "--data-uri: missing"),
        (["--host", "http://h", "--data-uri", "data/raw"], "--data-uri data/raw: must be an address"),
        (["--host", "http://h", "--data-uri", "s3://b", "--set", "preset=auto"], "preset: auto"),
        (["--host", "http://h", "--data-uri", "s3://b", "--set", "seed=-1"], "--set: seed = -1: must be"),
        (["--host", "http://h", "--data-uri", "s3://b", "--plugin", "mlflow"], "--plugin mlflow: must be PLUGIN."),
        (["--host", "http://h", "--data-uri", "s3://b", "--submit-id", "a b"], "--submit-id a b: must be"),
        (["--host", "http://h", "--data-uri", "s3://b", "--cron", "@daily"], '--cron "@daily": must have 6 fields'),
        (["--host", "http://h", "--data-uri", "s3://b", "--interval", "0"], "--interval 0: must be a number"),
        (
            ["--host", "http://h", "--data-uri", "s3://b", "--interval", "1d", "--max-concurrency", "11"],
            "--max-concurrency 11: must be 1 to 10",
        ),
        (["--host", "http://h", "--data-uri", "s3://b", "--interval", "1d", "--wait"], "--wait: a schedule has no end"),
        (["--host", "http://h", "--watch", "r", "--token-file", "nowhere"], "--token-file nowhere: can't be read: No"),
        (["--host", "http://h", "--watch", "r", "--ca-file", "nowhere"], "--ca-file nowhere: holds no certificate"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_sent(params, flags, line):
    with pytest.raises(ConfigError) as caught:
        main(["--params", str(params), *flags])
    assert any(fault.startswith(line) for fault in caught.value.faults), caught.value.faults


@pytest.mark.parametrize("flag", ["--host", "--data-uri", "--tracking-uri"])
def test_password_in_an_address_is_refused_and_not_repeated(params, flag):
    given = {"--host": "http://h", "--data-uri": "s3://b"} | {flag: "https://me:s3cret@h"}
    with pytest.raises(ConfigError, match=f"{flag}: holds a user or a password") as caught:
        main(["--params", str(params), *(word for pair in given.items() for word in pair)])
    assert "s3cret" not in str(caught.value)


def test_submitting_loads_nothing_heavy():
    code = (
        "import sys, pipelines.submit.actions\n"
        "heavy = {'torch', 'mlflow', 'deepspeed', 'transformers', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_wrong_flag_is_told_without_loading_kfp():
    code = (
        "import sys, pipelines.submit.__main__ as submit\n"
        "from ava_core.errors import ConfigError\n"
        "try: submit.main(['--host', 'nowhere'])\n"
        "except ConfigError: sys.exit('loaded kfp' if 'kfp' in sys.modules else 0)\n"
        "sys.exit('was taken')"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
