"""Preprocessing in parts on this machine: kfp.local runs the loop, two iterations at a time."""

from ava_core.config.kubernetes import KubernetesConfig
from pipelines.compile import compile_pipeline
from pipelines.graph import Graph


def test_every_part_has_a_folder_of_its_own_and_preprocess_comes_after_all(host):
    host.graph = Graph(compile_pipeline(["int8"], cluster=KubernetesConfig(preprocess_parts=3)))
    result = host.run()
    assert result.succeeded, result.fault
    assert host.called[:4] == ["preprocess-part"] * 3 + ["preprocess"]
    parts = [entry["flags"] for entry in host.journal[:3]]
    assert sorted(flags["part"] for flags in parts) == ["1/3", "2/3", "3/3"]
    assert len({flags["output"] for flags in parts}) == len({flags["executor-output"] for flags in parts}) == 3
    assert "part" not in host.journal[3]["flags"]


def test_a_part_that_fails_fails_the_run_before_preprocess_begins(host):
    host.graph = Graph(compile_pipeline(["int8"], cluster=KubernetesConfig(preprocess_parts=2)))
    result = host.run("preprocess-part=exit code")
    assert not result.succeeded
    assert result.failed.component == "preprocess-part"
    assert "preprocess" not in host.called and host.called[-1] == "record-outcome"
