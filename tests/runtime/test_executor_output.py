"""What a step tells Kubeflow, read back with kfp's own reader."""

import json
from pathlib import Path

import pytest

from ava_core.config import AvaConfig
from ava_core.errors import ConfigError
from ava_core.progress import Progress
from ava_core.runtime import executor_output
from ava_core.runtime.request import Request
from ava_core.runtime.step import run_step
from ava_core.steps.table import STEPS


def read_by_kfp(path: Path) -> dict:
    """Address and metadata of each artifact, as kfp.local reads them."""
    from kfp.local import executor_output_utils

    message = executor_output_utils.load_executor_output(str(path))
    artifacts = {
        name: executor_output_utils.artifact_list_to_dsl_artifact(entry, is_artifact_list=False)
        for name, entry in message.artifacts.items()
    }
    return {name: (artifact.uri, dict(artifact.metadata)) for name, artifact in artifacts.items()}


def test_kfp_reads_what_is_written(tmp_path):
    path = tmp_path / "made" / "executor_output.json"
    executor_output.write(path, {"model": (tmp_path / "model", {"step": "train"}), "metrics": (None, {"loss": 1.5})})
    assert read_by_kfp(path) == {
        "model": (str(tmp_path / "model"), {"step": "train"}),
        "metrics": ("", {"loss": 1.5}),
    }
    assert [file.name for file in path.parent.iterdir()] == ["executor_output.json"]


@pytest.mark.parametrize("uri", ["gs://bucket/v2/a", "minio://mlpipeline/v2/a", "s3://bucket/v2/a"])
def test_artifact_on_a_cluster_keeps_the_address_that_kfp_gave_it(uri):
    from kfp import dsl

    assert executor_output.address(Path(dsl.Model(uri=uri).path)) == uri


def test_artifact_elsewhere_has_its_path_as_address():
    assert executor_output.address(Path("/s3data/model")) == "/s3data/model"


@pytest.fixture
def request_for(tmp_path):
    """A request for `ava register`, with a computation that only writes its figures and a file."""

    def make(folder: str = "out", **changes) -> Request:
        fields = {
            "spec": STEPS["register"],
            "config": AvaConfig(threads=1),
            "inputs": {},
            "choices": {},
            "output": tmp_path / folder / "registration",
            "work": tmp_path / "work",
            "executor_output": tmp_path / folder / "executor_output.json",
            "progress": Progress(quiet=True),
        }
        return Request(**{**fields, **changes})

    return make


CLASSIFICATION = {
    "confidenceMetrics": [{"confidenceThreshold": 0.5, "recall": 1.0, "falsePositiveRate": 0.25}],
    "confusionMatrix": {"annotationSpecs": [{"displayName": "a"}], "rows": [{"row": [3]}]},
}


def compute(run):
    (run.output / "report.html").write_text("<p>report")
    (run.output / "classification.json").write_text(json.dumps(CLASSIFICATION))
    run.metrics.update({"promoted": 1, "model_version": 7, **dict.fromkeys(STEPS["evaluate"].metrics, 0.5)})


def test_figures_are_exported_as_kfp_s_output_parameters(request_for, tmp_path):
    from kfp.local import executor_output_utils
    from kfp.pipeline_spec import pipeline_spec_pb2

    exports = {"promoted": tmp_path / "deep" / "promoted", "model_version": tmp_path / "deep" / "model_version"}
    run_step(request_for(exports=exports), compute)
    kinds = pipeline_spec_pb2.ParameterType
    read = executor_output_utils.special_dsl_outputpath_read
    assert read("promoted", str(exports["promoted"]), kinds.BOOLEAN) is True
    assert read("model_version", str(exports["model_version"]), kinds.NUMBER_INTEGER) == 7


def test_files_are_exported_and_listed_as_artifacts(request_for, tmp_path):
    report = tmp_path / "elsewhere" / "report"
    request = request_for(spec=STEPS["evaluate"], exports={"report": report})
    run_step(request, compute)
    assert report.read_text() == "<p>report"
    listed = read_by_kfp(request.executor_output)
    assert set(listed) == {"evaluation", "metrics", "report"}
    assert listed["report"][0] == str(report) and listed["evaluation"][0] == str(request.output)
    assert listed["metrics"][1]["test_bits_per_byte"] == 0.5


def test_file_that_is_metadata_reaches_kubeflow_as_both(request_for, tmp_path):
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    path = tmp_path / "classification"
    request = request_for(spec=STEPS["evaluate"], exports={"classification": path})
    run_step(request, compute)
    assert json.loads(path.read_text()) == CLASSIFICATION
    message = json_format.Parse(request.executor_output.read_text(), pipeline_spec_pb2.ExecutorOutput())
    (artifact,) = message.artifacts["classification"].artifacts
    assert artifact.uri == str(path)
    assert json_format.MessageToDict(artifact.metadata) == CLASSIFICATION


def test_work_taken_again_is_exported_too_and_says_so(request_for, tmp_path):
    report = tmp_path / "report"
    first = request_for("one", spec=STEPS["evaluate"], exports={"report": report})
    run_step(first, compute)
    report.unlink()
    again = request_for("two", spec=STEPS["evaluate"], exports={"report": report})
    run_step(again, compute)
    assert report.exists()
    assert read_by_kfp(first.executor_output)["evaluation"][1]["reused"] is False
    assert read_by_kfp(again.executor_output)["evaluation"][1]["reused"] is True
    report.unlink()
    run_step(again, compute)  # the output itself is in place
    assert report.exists() and read_by_kfp(again.executor_output)["evaluation"][1]["reused"] is True


def test_step_outside_kubeflow_writes_nothing_beside_its_output(request_for):
    request = request_for(executor_output=None)
    run_step(request, compute)
    assert sorted(path.name for path in request.output.parent.iterdir()) == [
        "registration",
        "registration.timings.json",
    ]


def test_failed_step_writes_no_executor_output(request_for):
    request = request_for()
    with pytest.raises(ZeroDivisionError):
        run_step(request, lambda run: 1 / 0)
    assert not request.executor_output.exists()


def test_executor_output_is_json_without_clock_or_order(tmp_path):
    for name, artifacts in (("one", ["a", "b"]), ("two", ["b", "a"])):
        executor_output.write(tmp_path / name, {key: (None, {"x": 1, "a": 2}) for key in artifacts})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert json.loads((tmp_path / "one").read_text())["artifacts"]["a"]["artifacts"][0]["name"] == "a"


def test_place_in_the_executor_input_wins_over_a_placeholder_that_nobody_filled_in():
    """A cluster's launcher knows no `{{$.outputs.output_file}}`."""
    message = json.dumps({"outputs": {"outputFile": "/tmp/kfp_outputs/output_metadata.json"}})
    path = executor_output.wanted(Path("{{$.outputs.output_file}}"), message)
    assert path == Path("/tmp/kfp_outputs/output_metadata.json")
    assert executor_output.wanted(Path("there"), None) == Path("there")


@pytest.mark.parametrize("text", ["{{$}}", "[]", "{}", '{"outputs": {}}', '{"outputs": {"outputFile": 1}}'])
def test_text_that_is_no_executor_input_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match=r"--executor-input .*: is no ExecutorInput of KFP"):
        executor_output.wanted(None, text)
