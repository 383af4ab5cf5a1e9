"""Tools beside the steps whose output a step takes: the same manifest, key and atomic output, without the work folder.

What a tool makes is made again in the time that it takes to copy it, so nothing of it is kept twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ava_core.files import replace_folder, unfinished_folder, write_json
from ava_core.runtime import manifest
from ava_core.runtime.full_disk import full_disk_explained
from ava_core.runtime.identity import identify, is_present
from ava_core.runtime.inputs import Inputs
from ava_core.runtime.request import Request
from ava_core.runtime.work import timings_path

log = logging.getLogger(__name__)


def run_tool(request: Request, inputs: Inputs, compute: Callable[[Path], dict[str, float]]) -> bool:
    """Make an output that is complete or absent; whether anything was to be made.

    Args:
        request: what the tool was asked for; its choices enter the key.
        inputs: digests of what it reads.
        compute: fills the folder that it is given, and returns the figures of metrics.json.

    Raises:
        ConfigError: the output exists and was made from something else.
        AvaError: the work failed.
    """
    identity, output = identify(request, inputs), request.output
    if is_present(request, identity) and not request.force:
        log.info("%s: up to date: %s", request.spec.name, output)
        return False
    started = time.monotonic()
    output.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_explained(output.parent), unfinished_folder(output) as partial:
        write_json(partial / "metrics.json", compute(partial))
        manifest.write(partial, replace(identity, files=manifest.describe_files(partial)))
        # First, for an output without them isn't finished.
        write_json(timings_path(output), {"wall_seconds": round(time.monotonic() - started, 3)})
        replace_folder(partial, output)
    log.info("%s: wrote %s", request.spec.name, output)
    return True
