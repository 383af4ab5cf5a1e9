"""Compile the pipeline to KFP's intermediate representation; the same input gives the same bytes.

Usage: python -m pipelines.compile --output build/pipeline.yaml [--params params.yaml] [--image NAME]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from components.image import IMAGE
from pipelines import command_line


def compile_pipeline(schemes: Sequence[str], image: str = IMAGE) -> str:
    """The pipeline's intermediate representation, as YAML.

    Args:
        schemes: quantisation schemes; each becomes a task.
        image: image of every component.
    """
    from kfp import compiler

    from pipelines.ava_pipeline import build

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pipeline.yaml")
        compiler.Compiler().compile(build(schemes, image), package_path=str(path))
        return path.read_text(encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and compile."""
    parser = argparse.ArgumentParser(prog="pipelines.compile", description="Compile the pipeline to KFP's IR.")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--image", default=IMAGE, help="image of every component (default: %(default)s)")
    command_line.add_config_flags(parser)
    flags = parser.parse_args(arguments)
    config = command_line.resolve_flags(flags).config
    text = compile_pipeline(config.quantize.schemes, flags.image)
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    flags.output.write_text(text, encoding="utf-8")
    print(f"wrote {flags.output}: {len(text):,} bytes, schemes {', '.join(config.quantize.schemes) or 'none'}")


if __name__ == "__main__":
    command_line.run("pipelines.compile", main)
