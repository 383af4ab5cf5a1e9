"""The section `sft`: supervised fine-tuning on conversations."""

from __future__ import annotations

from ava_core.config.finetuning import AnsweringFineTuning


class SftConfig(AnsweringFineTuning):
    """Supervised fine-tuning. A key that isn't set is that of `train`; the rates are a fifth of its."""
