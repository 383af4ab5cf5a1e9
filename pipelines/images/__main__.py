"""Build the images that the pipeline's steps run in, check them and record them in build/images.json.

Usage: python -m pipelines.images [--target cpu|gpu]... [--base NAME] [--no-cache] [--push REPOSITORY] [--sizes]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipelines import command_line
from pipelines.images import build


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.images", description="Build the steps' images.")
    parser.add_argument(
        "--target", action="append", choices=build.TARGETS, help="image to build; repeatable (default: cpu)"
    )
    parser.add_argument(
        "--base", metavar="NAME", help="a Debian 12 image to build on (default: Debian's, or one built by mmdebstrap)"
    )
    parser.add_argument("--no-cache", action="store_true", help="build without the cached layers of earlier builds")
    parser.add_argument("--push", metavar="REPOSITORY", help="push the image afterwards and record its digest")
    parser.add_argument("--sizes", action="store_true", help="print the image's size by part, largest first")
    flags = parser.parse_args(arguments)
    for target in dict.fromkeys(flags.target or ["cpu"]):
        entry = build.build(target, chosen_base=flags.base, fresh=flags.no_cache, show=_show)
        if flags.push:
            build.push(target, flags.push, _show)
        if flags.sizes:
            for line in build.size_table(entry["id"]):
                _show(line)


def _show(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    command_line.run("pipelines.images", main)
