"""Settings of decoding from the command line, held to the configuration's own bounds."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ava_core.config.generation import GenerationConfig

FLAGS = {"penalty_alpha": "--contrastive"}
"""Those that aren't called like their setting."""
READERS = {
    "typical_p": ("nucleus", "typical"),
    "epsilon_cutoff": ("nucleus",),
    "eta_cutoff": ("nucleus",),
    "penalty_alpha": ("contrastive",),
    "num_beam_groups": ("beam",),
    "diversity_penalty": ("beam",),
    "length_penalty": ("beam",),
}
"""Settings by the strategies that look at them."""


def flag(setting: str) -> str:
    """What the command line calls a setting."""
    return FLAGS.get(setting) or f"--{setting.replace('_', '-')}"


def choose(
    strategy: str | None, given: dict[str, Any], use: str | None, fallback: str = "nucleus"
) -> tuple[str, GenerationConfig]:
    """Strategy and settings: the defaults, those of a use over them, and what was given over both.

    Raises:
        ConfigError: an unknown strategy or use, a value out of bounds, or a setting that the strategy doesn't look at.
    """
    from pydantic import ValidationError

    from ava_core.cli.uses import USES
    from ava_core.config.generation import GenerationConfig
    from ava_core.errors import ConfigError
    from ava_core.generation.strategies import require_strategy

    if use is not None and use not in USES:
        raise ConfigError(f"--for {use}: must be one of {', '.join(USES)}")
    preset = USES[use] if use is not None else None
    if strategy is None:
        strategy = "contrastive" if "penalty_alpha" in given else preset.strategy if preset else fallback
    require_strategy(strategy)
    try:
        settings = GenerationConfig(**{**(preset.settings if preset else {}), **given})
    except ValidationError as error:
        raise ConfigError(*(describe(fault) for fault in error.errors())) from error
    faults = [
        f"{flag(name)} {given[name]}: is read by {' and '.join(readers)} only: --strategy is {strategy}"
        for name, readers in READERS.items()
        if name in given and strategy not in readers
    ]
    if faults:
        raise ConfigError(*faults)
    return strategy, settings


def fitting(settings: GenerationConfig, context: int) -> GenerationConfig:
    """A preset's settings for a model of this context: new tokens take half of it at most, so that a prompt has room.

    It isn't the prompt that decides, for a text is the same alone and among others.
    """
    most = max(context // 2, settings.min_new_tokens, 1)
    return settings.model_copy(update={"max_new_tokens": min(settings.max_new_tokens, most)})


def describe(fault: Any) -> str:
    """What pydantic found, by the flags' names."""
    if not fault["loc"]:  # between two settings
        return re.sub(r"\b([a-z]+(?:_[a-z]+)+) = ", lambda name: f"{flag(name[1])} ", str(fault["ctx"]["error"]))
    return f"{flag(str(fault['loc'][0]))} {fault['input']}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"


def changed(settings: GenerationConfig, name: str, text: str) -> GenerationConfig:
    """Settings with one of them read from text, as YAML has it.

    Raises:
        ConfigError: there is no such setting, or its value is out of bounds.
    """
    import yaml
    from pydantic import ValidationError

    from ava_core.config.generation import GenerationConfig
    from ava_core.errors import ConfigError

    fields = GenerationConfig.model_fields
    name = name.replace("-", "_")
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
        raise ConfigError(f"{name}: is no setting of decoding: {hint}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if name == "stop" and not isinstance(value, list):
        value = [text]
    try:
        return GenerationConfig(**{**settings.model_dump(), name: value})
    except ValidationError as error:
        fault = error.errors()[0]
        if not fault["loc"]:
            raise ConfigError(str(fault["ctx"]["error"])) from error
        raise ConfigError(f"{name} = {text}: {fault['msg'][:1].lower()}{fault['msg'][1:]}") from error
