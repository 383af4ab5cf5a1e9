"""lm-eval as a step may use it: without network, without code from the Hub, without output of its own.

lm-eval renders a task's templates in an unrestricted Jinja environment, and fetches metrics that it doesn't know, as
code, from the Hugging Face Hub. Within `isolated()` templates are sandboxed, and nothing is fetched.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import datasets.config
import evaluate
import huggingface_hub.constants
import lm_eval.api.metrics
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.utils
import tqdm
from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

ONE_PROCESS = "DISABLE_MULTIPROC"
"""Variable of the environment: without it lm-eval forks for the bootstrap, amid PyTorch's threads."""


class CodeFromHubError(RuntimeError):
    """A metric that would have to be fetched from the Hugging Face Hub, as code."""


class _Quiet(tqdm.tqdm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


@contextmanager
def isolated() -> Iterator[None]:
    """Within it, lm-eval reaches no network, runs no code of the Hub, and prints nothing."""
    sandbox = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    sandbox.filters.update(lm_eval.utils.env.filters)
    with ExitStack() as stack:
        stack.enter_context(_one_process())
        for target, name, value in (
            (huggingface_hub.constants, "HF_HUB_OFFLINE", True),
            (datasets.config, "HF_HUB_OFFLINE", True),
            (evaluate, "load", _refuse),
            (lm_eval.utils, "env", sandbox),
            (lm_eval.api.task, "tqdm", _Quiet),
            (lm_eval.api.model, "tqdm", _Quiet),
            (tqdm, "tqdm", _Quiet),
            (lm_eval.api.metrics, "print", lambda *words: None),
        ):
            stack.enter_context(_replaced(target, name, value))
        stack.enter_context(_without_bars())
        stack.enter_context(_silent("lm_eval", "datasets", "evaluate", "huggingface_hub"))
        yield


def _refuse(path: str, *args: Any, **kwargs: Any) -> Any:
    raise CodeFromHubError(f"the metric {path} is code from the Hugging Face Hub")


@contextmanager
def _replaced(target: Any, name: str, value: Any) -> Iterator[None]:
    missing = object()
    before = vars(target).get(name, missing)
    setattr(target, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(target, name)
        else:
            setattr(target, name, before)


@contextmanager
def _one_process() -> Iterator[None]:
    before = os.environ.get(ONE_PROCESS)
    os.environ[ONE_PROCESS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[ONE_PROCESS]
        else:
            os.environ[ONE_PROCESS] = before


@contextmanager
def _without_bars() -> Iterator[None]:
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


@contextmanager
def _silent(*names: str) -> Iterator[None]:
    """Warnings of these loggers go nowhere: each task says the same ones, about defaults that are meant."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
