"""The tests' own Kubeflow Pipelines server refuses what the API's description doesn't allow."""

import json

import pytest
import urllib3

from tests.pipelines.kfp_api import DESCRIPTION, Description, NotAllowed
from tests.pipelines.kfp_server import KfpServer

RUN = {"display_name": "r", "runtime_config": {}}
RECURRING = {"display_name": "r", "max_concurrency": "1", "trigger": {"cron_schedule": {"cron": "0 0 3 * * *"}}}


@pytest.fixture(scope="module")
def description():
    if not DESCRIPTION.exists():
        pytest.skip(f"the API's description isn't there: {DESCRIPTION}")
    return Description()


@pytest.fixture
def server(description):
    running = KfpServer(description)
    yield running
    running.close()


def send(server, method, path, body=None, **options):
    url = f"{server.address}/apis/v2beta1/{path}"
    return urllib3.request(method, url, **({"json": body} if body is not None else {}), **options)


@pytest.mark.parametrize(
    ("method", "path", "body", "reason"),
    [
        ("GET", "runs?colour=red", None, "query parameter colour: the description has none"),
        ("GET", "runs?page_size=ten", None, "'ten' is no 32-bit integer"),
        ("GET", "auth?verb=EAT", None, "'EAT' is none of UNASSIGNED_VERB, CREATE"),
        ("GET", "runs", {}, "has a body"),
        ("GET", 'runs?filter={"predicates":[{"operation":"LIKE"}]}', None, "'LIKE' is not one of"),
        ("POST", "runs", {**RUN, "colour": "red"}, "'colour' was unexpected"),
        ("POST", "runs", {**RUN, "state": "RUNNING"}, "'state' was unexpected"),
        ("POST", "runs", {**RUN, "runtime_config": {"parameters": 7}}, "7 is not of type 'object'"),
        ("POST", "runs", {**RUN, "plugins_input": {"mlflow": "on"}}, "'on' is not of type 'object'"),
        ("POST", "runs", {"display_name": "r"}, "'runtime_config' is a required property"),
        ("POST", "recurringruns", {**RECURRING, "max_concurrency": 1}, "1 is not of type 'string'"),
        ("POST", "recurringruns", {**RECURRING, "max_concurrency": "one"}, "'one' is not a 'int64'"),
        ("POST", "recurringruns", {**RECURRING, "mode": "ON"}, "'ON' is not one of"),
        ("POST", "recurringruns", {**RECURRING, "namespace": "n"}, "'namespace' was unexpected"),
        ("POST", "pipelines", {"display_name": "p"}, "'name' is a required property"),
    ],
)
def test_request_that_is_not_allowed_is_refused_and_noted(server, method, path, body, reason):
    answer = send(server, method, path, body)
    assert answer.status == 400 and reason in answer.json()["message"]
    assert len(server.violations) == 1 and server.calls == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"json": {}}, "must be multipart/form-data"),
        ({"fields": {"file": ("p.yaml", b"x")}}, "must have one part, the file uploadfile"),
        ({"fields": {"uploadfile": ("p.yaml", b"x"), "name": "p"}}, "must have one part, the file uploadfile"),
    ],
)
def test_upload_of_another_form_is_refused(server, options, reason):
    answer = send(server, "POST", "pipelines/upload?name=p", **options)
    assert answer.status == 400 and reason in answer.json()["message"]


def test_json_under_another_name_is_refused(server):
    answer = send(server, "POST", "runs", headers={"Content-Type": "text/plain"}, **{"body": json.dumps(RUN)})
    assert answer.status == 400 and "must be application/json" in answer.json()["message"]


def test_path_that_the_description_lacks_is_not_found(server):
    assert send(server, "GET", "jobs").status == 404
    assert send(server, "PUT", "runs").status == 404


def test_reply_that_is_not_allowed_is_refused_and_noted(server):
    server.state.multi_user = "yes"
    assert send(server, "GET", "healthz").status == 400
    assert server.violations == ["reply of HealthzService_GetHealthz: $.multi_user: 'yes' is not of type 'boolean'"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"runs": [{"created_at": "yesterday"}]}, "'yesterday' is not a 'date-time'"),
        ({"runs": [{"state": "HAPPY"}]}, "'HAPPY' is not one of"),
        ({"runs": {}}, "is not of type 'array'"),
        ({"run": []}, "'run' was unexpected"),
        ({"runs": [{"run_details": {"task_details": [{"execution_id": 7}]}}]}, "7 is not of type 'string'"),
    ],
)
def test_reply_is_judged_to_its_depth(description, reply, reason):
    with pytest.raises(NotAllowed, match=reason):
        description.check_reply("RunService_ListRuns", 200, reply)


def test_what_the_description_allows_is_allowed(server):
    experiment = send(server, "POST", "experiments", {"display_name": "e"}).json()
    listed = send(server, "GET", "experiments?page_size=1&page_token=").json()
    assert listed == {"experiments": [experiment], "total_size": 1}
    assert server.violations == []
