"""The function of a reward: one of ours by its name, a user's own as `module:function`, or a reward model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ava_core.alignment.rewards.answer import Reward
from ava_core.config.rewards import RewardEntry
from ava_core.errors import AvaError, ConfigError, typed_line
from ava_core.runtime.digests import digest_file


def find_reward(config: RewardEntry) -> Reward:
    """The function that an entry of `rewards` names. To look for one of a user's own runs the code of its module.

    Raises:
        ConfigError: it isn't there, can't be imported, or isn't callable; or a folder holds no reward model.
        IntegrityError: that one is damaged.
    """
    if config.model is not None:
        from ava_core.alignment.rewards.reward_model import RewardModel

        return RewardModel(Path(config.model))
    if config.name is not None:
        return import_module(f"ava_core.alignment.rewards.{config.name}").reward
    module, _, name = str(config.function).partition(":")
    try:
        found = getattr(import_module(module), name)
    except AttributeError:
        raise ConfigError(f"reward {config.label}: module {module} has no `{name}`: correct its `function`") from None
    except Exception as error:
        raise ConfigError(
            f"reward {config.label}: can't be imported ({typed_line(error)}): mend the module, or put its folder on"
            " PYTHONPATH"
        ) from error
    if not callable(found):
        raise ConfigError(f"reward {config.label}: is {type(found).__name__}, not callable: name a function")
    return found


def digest_of(function: Callable[..., Any]) -> str:
    """SHA-256 of the source file of a user's function. What that file imports isn't covered.

    Raises:
        AvaError: it has no source file.
    """
    try:
        path = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        path = None
    if path is None or not Path(path).is_file():
        raise AvaError(
            f"reward {getattr(function, '__name__', function)}: has no source file that could be digested: name a"
            " function that is written in a Python file"
        )
    return digest_file(Path(path))
