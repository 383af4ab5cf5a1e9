"""Kinds of outputs, and the inputs that take one of them and are the same for several steps."""

from __future__ import annotations

from ava_core.steps.spec import Input, Kind

SHARDS = Kind(name="shards", artifact="Dataset")
CONVERSATIONS = Kind(name="conversations", artifact="Dataset")
PREFERENCES = Kind(name="preferences", artifact="Dataset")
PROMPTS = Kind(name="prompts", artifact="Dataset")
MODEL = Kind(name="model", artifact="Model")
REWARD_MODEL = Kind(name="reward model", artifact="Model")
INDEX = Kind(name="index", artifact="Dataset")
QUANTIZED = Kind(name="quantized", artifact="Model")
EVALUATION = Kind(name="evaluation")
DECISION = Kind(name="decision")
REGISTRATION = Kind(name="registration")

DATA_IN = Input(
    name="data",
    help="Folder with the corpus; sources with a relative path are read from it.",
    description="Folder with the corpus.",
    required=False,
)
SHARDS_IN = Input(name="shards", kind=SHARDS)
CONVERSATIONS_IN = Input(name="conversations", kind=CONVERSATIONS)
PREFERENCES_IN = Input(name="preferences", kind=PREFERENCES)
PROMPTS_IN = Input(name="prompts", kind=PROMPTS)
MODEL_IN = Input(name="model", kind=MODEL)
QUANTIZED_IN = Input(name="quantized", kind=QUANTIZED, required=False, repeated=True)
INDEX_IN = Input(
    name="index",
    kind=INDEX,
    help="Output folder of `ava index`, whose worth is measured too.",
    required=False,
    where_made=True,
)
EVALUATION_IN = Input(name="evaluation", kind=EVALUATION)
