"""The pipeline as params.yaml has it, for KFP's own compiler.

Usage: kfp dsl compile --py pipelines/default.py --output pipeline.yaml

It gives what `make pipeline-compile` does: the schemes and the section `kubernetes` shape the graph.
"""

from pathlib import Path

from ava_core.config import resolve
from pipelines import kubernetes
from pipelines.ava_pipeline import build
from pipelines.compile import choose_image

_config = resolve(params=Path(__file__).parents[1] / "params.yaml").config
kubernetes.check(_config)
ava = build(_config.quantize.schemes, choose_image(None), _config.kubernetes, stages=_config.stages)
