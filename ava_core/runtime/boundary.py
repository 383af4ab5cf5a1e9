"""What a process that runs a step imports of Ava and what can't change the step's result."""

from __future__ import annotations

from functools import cache

CONTRACT = 1
"""Version of the step contract. Raise it with a change in `ava_core.runtime` after which a step, with the same code and
the same inputs, would leave other bytes: what it hands to the step's computation, the files that it adds to an output.
Everybody's finished work is computed anew then."""
BOUNDARY = {
    "ava_core.cli.*": "reads flags; the module of a step's own command counts, for it calls the library",
    "ava_core.config": "hands on what other modules define",
    "ava_core.config.layers": "where the values come from, which enter the key themselves",
    "ava_core.config.presets": "as above",
    "ava_core.config.schema": "names the sections; those that a step reads count by themselves",
    "ava_core.runtime.*": "the step contract, whose version counts instead: CONTRACT",
    "ava_core.tracking.*": "records what came out; `ava gate` and `ava register`, which read there, are never skipped",
    "ava_core.evaluation.rows": "what pages of others show of a finished evaluation",
    "ava_core.training.callbacks.progress": "shows how far the training is",
    "ava_core.training.callbacks.profile": "looks at where the time goes",
    "ava_core.training.speed.phases": "marks it",
    "ava_core.launching.*": "starts processes; the module that calls the training counts, and threads and ranks do",
    "ava_core.auto_classes": "a hook for programs outside of Ava, in every process of the environment",
    "ava_core.checkout": "the folder that notes lie in",
    "ava_core.interruption": "signals: a step that was interrupted has no result",
    "ava_core.progress": "shows how far a step is",
    "ava_core.redaction": "hides secrets in messages",
    "ava_core.server_address": "refuses addresses",
}
"""Modules by name, or with `.*` all of a package, and why. They enter no step's key, and nor does what only they
import. A module that is missing here costs a rerun when it changes; one that is wrongly here, a stale result."""


@cache
def is_outside(module: str) -> bool:
    """Whether the module can't change a result."""
    parts = module.split(".")
    return module in BOUNDARY or any(f"{'.'.join(parts[:end])}.*" in BOUNDARY for end in range(1, len(parts) + 1))
