"""The tests' own Kubeflow Pipelines server refuses what the API's description doesn't allow."""

import json

import pytest
import urllib3

from tests.pipelines import kfp_package
from tests.pipelines.kfp_api import Description, NotAllowed
from tests.pipelines.kfp_server import KfpServer

RUN = {"display_name": "r", "runtime_config": {}}
RECURRING = {"display_name": "r", "max_concurrency": "1", "trigger": {"cron_schedule": {"cron": "0 0 3 * * *"}}}


@pytest.fixture(scope="module")
def description():
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
        (
            "POST",
            "runs",
            {**RUN, "pipeline_version_reference": {"pipeline_version_id": "v"}},
            "'pipeline_id' is a required",
        ),
        ("POST", "runs", {**RUN, "run_details": {}}, "'run_details' was unexpected"),
        ("POST", "recurringruns", {**RECURRING, "trigger": None}, "None is not of type 'object'"),
        ("DELETE", "recurringruns/1?propagation_policy=NEVER", None, "'NEVER' is none of"),
        ("DELETE", "pipelines/1?cascade=maybe", None, "'maybe' is neither true nor false"),
        ("POST", "experiments", {"display_name": "e", "storage_state": "ARCHIVED"}, "'storage_state' was unexpected"),
        ("PATCH", "pipelines/1", {"tags": {"team": 7}}, "7 is not of type 'string'"),
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


def test_description_has_every_route_of_the_package():
    described = kfp_package.describe()
    operations = {
        operation["operationId"]: f"{method.upper()} {route}"
        for route, methods in described["paths"].items()
        for method, operation in methods.items()
    }
    assert len(operations) == 40
    assert operations["UploadPipelineVersion"] == "POST /apis/v2beta1/pipelines/upload_version"
    assert operations["RunService_RetryRun"] == "POST /apis/v2beta1/runs/{run_id}:retry"
    assert operations["PipelineService_GetPipelineByName"] == "GET /apis/v2beta1/pipelines/names/{name}"


def test_what_is_written_by_hand_is_about_fields_that_the_package_has_and_says_less_of():
    for model, attribute in [*kfp_package.TYPES, *kfp_package.ROLES]:
        assert attribute in getattr(kfp_package.models, model).openapi_types
    for model, attribute in kfp_package.ROLES:
        assert kfp_package.described_as(getattr(kfp_package.models, model), attribute) == ""
