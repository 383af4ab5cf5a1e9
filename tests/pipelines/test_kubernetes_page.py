"""docs/kubernetes.md names every key of the section, and its example is one."""

import re
from pathlib import Path

import pytest
import yaml

from ava_core.config import resolve
from ava_core.config.kubernetes import (
    KubernetesConfig,
    PodConfig,
    RetryConfig,
    SecretConfig,
    TolerationConfig,
    WorkConfig,
)
from pipelines import kubernetes
from pipelines.compile import compile_pipeline

PAGE = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text()
SECTIONS = (KubernetesConfig, PodConfig, RetryConfig, SecretConfig, TolerationConfig, WorkConfig)


@pytest.mark.slow
def test_the_example_compiles():
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    config = resolve(params_text=example).config
    kubernetes.check(config)
    ir, platform = yaml.safe_load_all(compile_pipeline(config.quantize.schemes, "image", config.kubernetes))
    assert "comp-preprocess-part" in ir["components"]
    train = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]
    assert train["activeDeadlineSeconds"] == "172800"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_is_explained(section):
    rows = "".join(line for line in PAGE.splitlines(keepends=True) if line.startswith("| `"))
    written = {word for code in re.findall(r"`([^`]+)`", rows) for word in re.findall(r"\w+", code)}
    assert set(section.model_fields) - written == set()
