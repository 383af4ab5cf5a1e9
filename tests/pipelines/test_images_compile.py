"""The image that `python -m pipelines.compile` puts into the pipeline, and what it says of it."""

import json
from pathlib import Path

import pytest
import yaml

from components.image import IMAGE
from pipelines import compile as compiling

ID = "sha256:" + "a" * 64
DIGEST = "registry.invalid/ava@sha256:" + "b" * 64
PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compile in a folder of its own; the images of the components."""
    monkeypatch.chdir(tmp_path)

    def compile_with(*arguments: str, record: dict | None = None) -> set[str]:
        if record is not None:
            Path("build").mkdir()
            Path("build/images.json").write_text(json.dumps(record))
        compiling.main(["--params", str(PARAMS), "--output", "pipeline.yaml", *arguments])
        spec = next(iter(yaml.safe_load_all(Path("pipeline.yaml").read_text())))
        executors = spec["deploymentSpec"]["executors"].values()
        return {executor["container"]["image"] for executor in executors if "container" in executor}

    return compile_with


def test_recorded_image_is_compiled_without_being_named(compiled, capsys):
    assert compiled(record={"cpu": {"id": ID, "digest": DIGEST}}) == {DIGEST}
    assert "warning" not in capsys.readouterr().err


def test_image_that_no_registry_has_warns(compiled, capsys):
    assert compiled(record={"cpu": {"id": ID, "digest": None}}) == {ID}
    assert "known to this machine's Docker engine only" in capsys.readouterr().err


def test_named_image_wins_over_the_recorded_one(compiled, capsys):
    assert compiled("--image", DIGEST, record={"cpu": {"id": ID, "digest": None}}) == {DIGEST}
    assert "warning" not in capsys.readouterr().err


def test_moving_tag_warns_in_one_line(compiled, capsys):
    assert compiled() == {IMAGE}
    err = capsys.readouterr().err
    assert err.startswith(f"pipelines.compile: warning: image {IMAGE} is a moving tag") and err.count("\n") == 1
