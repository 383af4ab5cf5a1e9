"""Remove quantised models of schemes that params.yaml no longer lists.

Usage: python -m pipelines.prune_schemes --params params.yaml outputs/quantized

dvc.yaml runs it after `ava quantize`: DVC can't list a matrix in another stage's dependencies, so evaluate and
register depend on the parent folder, and a scheme left over there would change its hash.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ava_core.config import resolve
from ava_core.steps.schemes import SCHEMES


def prune(folder: Path, schemes: list[str]) -> list[Path]:
    """Remove the sub-folders, timings and logs of known schemes that `schemes` lacks; other files stay."""
    removed = []
    for scheme in sorted(set(SCHEMES) - set(schemes)):
        if (folder / scheme).is_dir():
            shutil.rmtree(folder / scheme)
            removed.append(folder / scheme)
    for path in folder.iterdir():
        if path.is_file() and path.name.split(".")[0] in SCHEMES and path.name.split(".")[0] not in schemes:
            path.unlink()
    return removed


def main() -> None:
    """Parse the command line and prune."""
    parser = argparse.ArgumentParser(description="Remove quantised models of schemes that are no longer listed.")
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for path in prune(arguments.folder, list(resolve(params=arguments.params).config.quantize.schemes)):
        print(f"removed {path}: quantize.schemes no longer lists it")


if __name__ == "__main__":
    main()
