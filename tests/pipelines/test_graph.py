"""What is read in a compiled pipeline."""

import pytest

from ava_core.config.kubernetes import KubernetesConfig
from ava_core.errors import ConfigError
from pipelines.command_line import parse_timeouts
from pipelines.compile import compile_pipeline
from pipelines.graph import Graph


@pytest.fixture(scope="module")
def graph(ir) -> Graph:
    return Graph(ir)


def test_components_know_their_step_and_image(graph):
    assert graph.component("quantize-int8").step == "quantize" and graph.component("train").step == "train"
    assert graph.component("record-outcome").step is None
    assert graph.images == {"ava-moe:cpu"}


def test_step_names_all_its_components_and_a_component_itself(graph):
    assert graph.select("quantize", "--from") == {"quantize-int8", "quantize-int4"}
    assert graph.select("quantize-int4", "--from") == {"quantize-int4"}
    with pytest.raises(
        ConfigError, match=r"--from trian: no such step: must be one of preprocess, train, quantize-int"
    ):
        graph.select("trian", "--from")


def test_from_a_step_on_is_the_step_and_what_depends_on_it(graph):
    last = {"evaluate", "gate", "register", "record-outcome"}
    assert graph.from_on({"quantize-int8"}) == {"quantize-int8", *last}
    assert graph.from_on({"train"}) == {"train", "quantize-int8", "quantize-int4", *last}
    assert graph.from_on({"preprocess"}) == set(graph.order)


def test_parts_of_the_corpus_come_before_preprocess_and_belong_to_it():
    cluster = KubernetesConfig.model_validate({"preprocess_parts": 2, "work": {"claim": "work"}})
    graph = Graph(compile_pipeline(["int8"], cluster=cluster))
    assert graph.order[:2] == ["preprocess-part", "preprocess"]
    assert graph.select("preprocess", "--from") == {"preprocess-part", "preprocess"}
    assert "train" in graph.from_on({"preprocess-part"})


def test_time_limits_are_the_cluster_s_and_those_of_the_command_line():
    cluster = KubernetesConfig.model_validate({"steps": {"train": {"timeout_seconds": 7200}}})
    graph = Graph(compile_pipeline(["int8"], cluster=cluster))
    assert (graph.component("train").timeout, graph.component("evaluate").timeout) == (7200.0, None)
    given = ["quantize=60", "train=1.5", "train=2"]
    assert parse_timeouts(given, graph) == {"quantize-int8": 60.0, "train": 2.0}


@pytest.mark.parametrize("text", ["train", "train=", "train=soon", "train=0", "train=-1", "train=nan", "train=inf"])
def test_time_limit_that_is_none_is_refused(graph, text):
    with pytest.raises(ConfigError, match=f"--timeout {text}: must be STEP=SECONDS"):
        parse_timeouts([text], graph)
