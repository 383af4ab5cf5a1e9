"""Kinds of outputs, and the inputs that take one of them and are the same for several steps."""

from __future__ import annotations

from ava_core.steps.spec import Input, Kind

SHARDS = Kind(name="shards", artifact="Dataset")
CONVERSATIONS = Kind(name="conversations", artifact="Dataset")
MODEL = Kind(name="model", artifact="Model")
QUANTIZED = Kind(name="quantized", artifact="Model")
EVALUATION = Kind(name="evaluation")
DECISION = Kind(name="decision")
REGISTRATION = Kind(name="registration")

SHARDS_IN = Input(name="shards", kind=SHARDS)
CONVERSATIONS_IN = Input(name="conversations", kind=CONVERSATIONS)
MODEL_IN = Input(name="model", kind=MODEL)
QUANTIZED_IN = Input(name="quantized", kind=QUANTIZED, required=False, repeated=True)
EVALUATION_IN = Input(name="evaluation", kind=EVALUATION)
