"""Importing DeepSpeed."""

from __future__ import annotations

import logging
import os
import warnings


def import_deepspeed():
    """Import DeepSpeed, with its log lines below a warning hidden and its CPU accelerator chosen without a GPU."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Of names that torch gives new ones and DeepSpeed still uses; ZeRO 3 would print them in every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed
