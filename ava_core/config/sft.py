"""The section `sft`: supervised fine-tuning on conversations."""

from __future__ import annotations

from ava_core.config.finetuning import FineTuning
from ava_core.config.section import NonNegative


class SftConfig(FineTuning):
    """Supervised fine-tuning. A key that isn't set is that of `train`; the rates are a fifth of its."""

    samples: NonNegative = 32
    """Held-out prompts that the finished model answers, to count the answers that end by themselves."""
