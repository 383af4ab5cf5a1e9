"""Compile the pipeline to KFP's intermediate representation; the same input gives the same bytes.

Usage: python -m pipelines.compile --output build/pipeline.yaml [--params params.yaml] [--image NAME]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ava_core.config import AvaConfig
from ava_core.config.kubernetes import KubernetesConfig
from ava_core.config.register import REGISTERED
from ava_core.errors import ConfigError
from components import image as images
from components.image import IMAGE
from pipelines import command_line, kubernetes


def compile_pipeline(
    schemes: Sequence[str],
    image: str = IMAGE,
    cluster: KubernetesConfig | None = None,
    begins_from_folder: bool = False,
    stages: Sequence[str] = (),
) -> str:
    """The pipeline's intermediate representation: two YAML documents, the PipelineSpec and the PlatformSpec.

    Args:
        schemes: quantisation schemes; each becomes a task.
        image: image of every component.
        cluster: the section `kubernetes`; None for its defaults.
        begins_from_folder: `train.init` names a folder, see `parent_folder`.
        stages: between train and quantize, `AvaConfig.stages`.
    """
    from kfp import compiler

    from pipelines.ava_pipeline import build

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pipeline.yaml")
        graph = build(schemes, image, cluster, begins_from_folder=begins_from_folder, stages=stages)
        compiler.Compiler().compile(graph, package_path=str(path))
        return path.read_text(encoding="utf-8")


def compile_configured(config: AvaConfig, image: str) -> str:
    """As `compile_pipeline`, of the graph that a configuration asks for."""
    return compile_pipeline(
        config.quantize.schemes, image, config.kubernetes, parent_folder(config) is not None, config.stages
    )


def parent_folder(config: AvaConfig) -> str | None:
    """The folder or address that `train.init` names; None for a registered model, and without one."""
    init = config.train.init
    return None if init is None or init.startswith(REGISTERED) else init


def require_reachable_models(config: AvaConfig) -> None:
    """Refuse models that the graph's tasks can't see: only what a training begins from has an input of the graph.

    Raises:
        ConfigError: one of them is a folder.
    """
    named = {"train.teacher.model": config.train.teacher.model}
    if config.retrieval.pipeline:
        named["retrieval.model"] = config.retrieval.model
    for key, model in named.items():
        if model is not None and not model.startswith(REGISTERED):
            raise ConfigError(
                f"{key} = {model}: the pipeline's tasks don't see that folder: register the model and give"
                " models:/NAME@ALIAS, or run the step by hand or under DVC"
            )


def choose_image(given: str | None, record: Path = images.RECORD) -> str:
    """The image to compile with (see `components.image.choose`); a warning goes to standard error."""
    image = images.choose(given, record=record)
    if warning := images.warning(image):
        print(f"pipelines.compile: warning: {warning}", file=sys.stderr)
    return image


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and compile."""
    parser = argparse.ArgumentParser(prog="pipelines.compile", description="Compile the pipeline to KFP's IR.")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--image", help="image of every component (default: the one that `make images` built)")
    command_line.add_config_flags(parser)
    flags = parser.parse_args(arguments)
    config = command_line.resolve_flags(flags).config
    kubernetes.check(config)
    require_reachable_models(config)
    text = compile_configured(config, choose_image(flags.image))
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    flags.output.write_text(text, encoding="utf-8")
    print(f"wrote {flags.output}: {len(text):,} bytes, schemes {', '.join(config.quantize.schemes) or 'none'}")


if __name__ == "__main__":
    command_line.run("pipelines.compile", main)
