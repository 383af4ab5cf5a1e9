"""What `train.compile` needs of a machine: a GPU, a compiler, and a folder for what was compiled.

Inductor writes Triton's code and compiles it when a graph is first run. It keeps the files, and would load what lies
where it looks: hence a folder that nobody else can write to.
"""

from __future__ import annotations

import os
import shutil
import stat
import sysconfig
import tempfile
from pathlib import Path

import torch

from ava_core.errors import ConfigError

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Variable of PyTorch's that names the folder for what was compiled."""


def require_compiler() -> None:
    """Refuse a machine on which layers can't be compiled, or not soundly.

    On CPUs with AVX-512, PyTorch 2.13's C++ gave gradients that were nan where all other ways, the same graphs without
    Inductor among them, gave numbers, and once a segmentation fault. Triton's launchers, for GPUs, are C that includes
    Python's headers.

    Raises:
        ConfigError: there is no GPU, no compiler, or no headers.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "train.compile = true: there is no GPU, and on CPUs compiled layers aren't reliable: use false, or a"
            " machine with a GPU"
        )
    wanted = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    if not any(shutil.which(name) for name in wanted):
        raise ConfigError(
            f"train.compile = true: needs a C compiler, and there is no {' or '.join(wanted)}: install one, name it in"
            " CC, or use false"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise ConfigError(f"train.compile = true: needs {header}: install Python's headers (python3-dev), or use false")


def private_cache() -> Path:
    """The folder for compiled code: that of TORCHINDUCTOR_CACHE_DIR, else one below the temporary files; made if need
    be, for this user alone.

    Raises:
        ConfigError: others may write to it.
    """
    given = os.environ.get(CACHE)
    folder = Path(given) if given else Path(tempfile.gettempdir()) / f"ava-compiled-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"train.compile = true: {folder}: others may write there, and what lies there is run: name a folder of your"
            f" own in {CACHE}"
        )
    return folder
