"""The API of Kubeflow Pipelines as the pinned package `kfp-server-api` knows it, in the form of Swagger 2.0.

The package is generated from the API's own description. Its methods are called with a client that only notes what it
would have sent: the route, where each argument goes, and the model of the reply. Its models name their fields and
types; their docstrings hold the fields' descriptions. What the generator dropped on the way stands in the tables
below; they were read in that description, `backend/api/v2beta1/swagger/kfp_api_single_file.swagger.json` of
kubeflow/pipelines.
"""

import inspect
import re
from typing import Any

import kfp_server_api
from kfp_server_api import api, models
from kfp_server_api.api_client import ApiClient

SCALARS: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "bool": {"type": "boolean"},
    "int": {"type": "integer", "format": "int32"},  # protocol buffers put 64-bit integers into JSON as strings
    "datetime": {"type": "string", "format": "date-time"},
    "object": {"type": "object"},
}
INT64 = {"type": "string", "format": "int64"}

TYPES: dict[tuple[str, str], dict[str, Any]] = {
    # In JSON a 64-bit integer is a string, and the package says only that.
    ("V2beta1PeriodicSchedule", "interval_second"): INT64,
    ("V2beta1PipelineTaskDetail", "execution_id"): INT64,
    ("V2beta1Predicate", "long_value"): INT64,
    ("PredicateLongValues", "values"): {"type": "array", "items": INT64},
    ("V2beta1RecurringRun", "max_concurrency"): INT64,
    ("V2beta1RunDetails", "pipeline_context_id"): INT64,
    ("V2beta1RunDetails", "pipeline_run_context_id"): INT64,
    ("V2beta1ArtifactList", "artifact_ids"): {"type": "array", "items": INT64},
    # Of bytes it keeps only a pattern, inside the setter.
    ("ProtobufAny", "value"): {"type": "string", "format": "byte"},
    # `object` is what it makes of google.protobuf.Struct and of google.protobuf.Value; these are values: any JSON.
    ("V2beta1RuntimeConfig", "parameters"): {"type": "object", "additionalProperties": {}},
    ("V2beta1MetadataValue", "value"): {},
    # OUTPUT_ONLY by an annotation, not in its description's words.
    ("V2beta1RecurringRun", "namespace"): {"type": "string", "readOnly": True},
}
"""Types that the package doesn't say, by model and attribute."""

ROLES = {
    # The generator drops the description of a field whose type is a model of its own.
    ("V2beta1CreatePipelineAndVersionRequest", "pipeline"): "Required input.",
    ("V2beta1CreatePipelineAndVersionRequest", "pipeline_version"): "Required input.",
    ("V2beta1Experiment", "storage_state"): "Output.",
    ("V2beta1PipelineVersion", "package_url"): "Input. Required.",
    ("V2beta1RecurringRun", "trigger"): "Required input field.",
    ("V2beta1Run", "run_details"): "Output.",
    ("V2beta1Run", "runtime_config"): "Required input.",
    ("V2beta1Run", "state"): "Output.",
    ("V2beta1Run", "storage_state"): "Output.",
}
"""How the description of a field begins, where the package has none."""

QUERY_ENUMS = {
    "resources": models.AuthorizeRequestResources,
    "verb": models.AuthorizeRequestVerb,
    "propagation_policy": models.V2beta1DeletePropagationPolicy,
}
"""Query parameters that the package calls `str`, though it has the model of their values."""


class _NotedCall(Exception):
    """Carries what a method of the package was about to send."""

    def __init__(self, route: str, method: str, sent: dict[str, Any]) -> None:
        super().__init__(route)
        self.route, self.method, self.sent = route, method, sent


class _NotingClient(ApiClient):
    """Sends nothing."""

    def call_api(self, resource_path, method, path_params=None, query_params=None, header_params=None, **sent):
        raise _NotedCall(resource_path, method, {"path": path_params, "query": query_params, **sent})


def describe() -> dict[str, Any]:
    """`paths` and `definitions`, as in a Swagger 2.0 file."""
    paths: dict[str, dict[str, Any]] = {}
    client = _NotingClient()
    for name, service in inspect.getmembers(api, inspect.isclass):
        for method_name, method in inspect.getmembers(service(client), inspect.ismethod):
            if method_name.endswith("_with_http_info"):
                operation_id = _operation_id(name.removesuffix("Api"), method_name.removesuffix("_with_http_info"))
                route, verb, operation = _operation(method)
                paths.setdefault(route, {})[verb.lower()] = {"operationId": operation_id, **operation}
    definitions = {name: _definition(model) for name, model in inspect.getmembers(models, inspect.isclass)}
    return {"paths": paths, "definitions": definitions}


def _operation_id(service: str, method: str) -> str:
    """`RunService_GetRun` of `run_service_get_run`; a method that doesn't name its service has only its own name."""
    prefix = re.sub(r"(?<=.)([A-Z])", r"_\1", service).lower() + "_"
    camel = "".join(word.capitalize() for word in method.removeprefix(prefix).split("_"))
    return f"{service}_{camel}" if method.startswith(prefix) else camel


def _operation(method: Any) -> tuple[str, str, dict[str, Any]]:
    """Route, HTTP method, and parameters and responses of a method of the package."""
    types = dict(re.findall(r":type (\w+): (\S+)$", method.__doc__, re.MULTILINE))
    required = set(re.findall(r":param (\w+): .*\(required\)$", method.__doc__, re.MULTILINE))
    # Each argument's value is its own name, so that what is sent tells where each goes.
    try:
        method(**{name: name for name in types if name != "async_req" and not name.startswith("_")})
    except _NotedCall as noted:
        call = noted
    parameters = [
        _parameter("query", field, types[name], required=name in required) for field, name in call.sent["query"]
    ]
    if call.sent["body"] is not None:
        parameters.append({"in": "body", "required": True, "schema": _schema(types[call.sent["body"]])})
    parameters += [{"in": "formData", "name": name, "required": True, "type": "file"} for name in call.sent["files"]]
    reply = call.sent["response_type"]
    responses = {
        "200": {"schema": {"type": "object", "properties": {}} if reply == "object" else _schema(reply)},
        "default": {"schema": _schema("GoogleRpcStatus")},
    }
    return call.route, call.method, {"parameters": parameters, "responses": responses}


def _parameter(location: str, name: str, kind: str, *, required: bool) -> dict[str, Any]:
    parameter = {"in": location, "name": name, "required": required, **_schema(kind)}
    if name in QUERY_ENUMS:
        parameter["enum"] = QUERY_ENUMS[name].allowable_values
    return parameter


def _definition(model: type) -> dict[str, Any]:
    if hasattr(model, "allowable_values"):
        return {"type": "string", "enum": model.allowable_values}
    properties = {
        field: {
            **TYPES.get((model.__name__, attribute), _schema(model.openapi_types[attribute])),
            "description": described_as(model, attribute) or ROLES.get((model.__name__, attribute), ""),
        }
        for attribute, field in model.attribute_map.items()
    }
    definition: dict[str, Any] = {"type": "object", "properties": properties}
    if model is models.ProtobufAny:
        definition["additionalProperties"] = {}  # the message's own fields, beside `@type`
    return definition


def described_as(model: type, attribute: str) -> str:
    """What a model's docstring says of a field, "" if nothing; it stands between two lines of the generator's own."""
    docstring = getattr(model, attribute).__doc__
    text = re.search(r"# noqa: E501\n(.*?)\n\s*:return:", docstring, re.DOTALL)
    assert text is not None, docstring
    return text[1].replace("# noqa: E501", "").strip()


def _schema(kind: str) -> dict[str, Any]:
    """JSON Schema of one of the package's types: `str`, `list[V2beta1Run]`, `dict(str, object)`, `V2beta1Run`."""
    if kind in SCALARS:
        return dict(SCALARS[kind])
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": _schema(inner[1])}
    if inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": _schema(inner[1])}
    assert hasattr(kfp_server_api, kind), kind
    return {"$ref": f"#/definitions/{kind}"}
