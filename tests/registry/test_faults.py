"""A server that refuses, fails or dies, and a step that is killed: one line, and nothing twice after the next call."""

import os
import re
import signal

import pytest

from ava_core.errors import AvaError
from tests.registry.proxy import Proxy


def registered_once(client, name):
    """One version, one run that has ended, one whole model."""
    experiment = client.get_experiment_by_name(name).experiment_id
    versions = client.search_model_versions(f"name = '{name}'")
    runs = client.search_runs([experiment])
    models = client.search_logged_models([experiment])
    assert (len(versions), [run.info.status for run in runs]) == (1, ["FINISHED"])
    assert [str(model.status) for model in models] == ["READY"]
    return True


def in_child(act):
    """The message of the error that `act` ends with, in a process of its own.

    MLflow remembers within a process where a run's artifacts are, so going through the proxy would leave a trace.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        try:
            act()
        except AvaError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        message = pipe.read()
    os.waitpid(child, 0)
    return message


def test_server_that_does_not_answer_is_one_line(make_inputs, run_register):
    with pytest.raises(AvaError, match=r"^http://\*\*\*@127.0.0.1:9: no MLflow server answers: start one") as caught:
        run_register(make_inputs(2.0), uri="http://user:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "doesn't know us: check MLFLOW_TRACKING_USERNAME"), (403, "doesn't let us do that: ask for EDIT")],
)
def test_server_that_refuses_us_is_one_line(make_inputs, run_register, mlflow_server, status, says):
    proxy = Proxy(mlflow_server, before=lambda method, path: status)
    with proxy, pytest.raises(AvaError, match=says) as caught:
        run_register(make_inputs(2.0), uri=proxy.address)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_server_that_fails_on_uploads_is_one_line_and_the_next_call_goes_on(
    make_inputs, run_register, mlflow_server, client, model_name
):
    inputs = make_inputs(2.0)

    def full_disk(method, path):
        return 500 if method == "PUT" and "model.safetensors" in path else None

    with Proxy(mlflow_server, before=full_disk) as proxy:
        message = in_child(lambda: run_register(inputs, uri=proxy.address))
    assert re.search(r"keeps failing \(HTTP 500\), often of a full disk", message) and "\n" not in message
    assert run_register(inputs).metrics == {"promoted": 1.0, "model_version": 1.0}
    assert registered_once(client, model_name)


@pytest.mark.slow
def test_server_that_dies_half_way_is_one_line_and_the_next_call_goes_on(
    make_inputs, run_register, mlflow_server, client, model_name
):
    inputs = make_inputs(2.0)

    def die(method, path):
        if path.endswith("/logged-models"):
            proxy.server.socket.close()
            raise ConnectionResetError

    with Proxy(mlflow_server, before=die) as proxy:
        proxy.server.handle_error = lambda *arguments: None
        message = in_child(lambda: run_register(inputs, uri=proxy.address))
    assert "doesn't answer any more: start it and run the step again" in message and "\n" not in message
    assert run_register(inputs).metrics == {"promoted": 1.0, "model_version": 1.0}
    assert registered_once(client, model_name)


POINTS = {
    "the run was created": ("POST", "/runs/create"),
    "a file of the model was uploaded": ("PUT", "artifacts/model/model.safetensors"),
    "the model was created": ("POST", "/logged-models"),
    "the version was created": ("POST", "/model-versions/create"),
    "the champion was set": ("POST", "/registered-models/alias"),
}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.replace(" ", "_"))
def test_killed_registration_run_again_ends_with_one_version_and_one_run(
    make_inputs, run_register, mlflow_server, client, model_name, point
):
    """The server does what was asked, and the client dies before it hears of it: the worst moment."""
    inputs = make_inputs(2.0)
    wanted, fragment = POINTS[point]
    aliases = iter([False, True])
    victims: list[int] = []

    def kill(method, path):
        if method == wanted and path.endswith(fragment) and (not fragment.endswith("alias") or next(aliases)):
            os.kill(victims[0], signal.SIGKILL)

    with Proxy(mlflow_server, after=kill) as proxy:
        child = os.fork()
        if child == 0:
            try:
                run_register(inputs, uri=proxy.address)
            finally:
                os._exit(0)
        victims.append(child)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, proxy.seen[-3:]
    assert run_register(inputs).metrics == {"promoted": 1.0, "model_version": 1.0}
    assert registered_once(client, model_name)
    assert client.get_registered_model(model_name).aliases == {"challenger": "1", "champion": "1"}
