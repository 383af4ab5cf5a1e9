"""`ava preprocess --part I/N`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core.cli.step_flags import Instead

if TYPE_CHECKING:
    from ava_core.runtime.request import Request


def _clean_part(request: Request, flags: Mapping[str, Any]) -> None:
    from ava_core.data.preprocess import clean_part
    from ava_core.errors import ConfigError
    from ava_core.runtime.step import run_part

    part = flags["part"]
    match = re.fullmatch(r"([1-9]\d{0,3})/([1-9]\d{0,3})", part)
    index, count = map(int, match.groups()) if match else (1, 0)
    if index > count:
        raise ConfigError(f"--part {part}: must be I/N with 1 <= I <= N, such as 2/4")

    def clean(state: Path) -> dict[str, Any]:
        return clean_part(
            request.config.data,
            data=next(iter(request.inputs["data"]), None),
            state=state,
            index=index,
            count=count,
            progress=request.progress,
        )

    run_part(request, f"part-{index}-of-{count}", clean)


PART = Instead(
    flag="part",
    metavar="I/N",
    help="Only clean part I of N, into the work folder: `ava preprocess` goes on from there once it has all N.",
    call=_clean_part,
)
