"""The tasks of a configuration, opened: found, checked, and with their data, before any model is."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets.config
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from ava_core.config.tasks import BUILT_IN, TaskConfig
from ava_core.errors import ConfigError, first_line, typed_line
from ava_core.tasks.catalogue import Catalogue
from ava_core.tasks.files import write_task
from ava_core.tasks.held_out import make_task
from ava_core.tasks.isolation import CodeFromHubError, isolated
from ava_core.tasks.yaml_task import read_yaml_task, with_local_data

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OpenTask:
    """An entry of the configuration and what lm-eval runs for it.

    Attributes:
        entry: as it is configured.
        loaded: lm-eval's tasks by name, and its groups.
        limit: questions of each task.
        made: the file that one of our own tasks was written to.
    """

    entry: TaskConfig
    loaded: Any
    limit: int | None
    made: Path | None = None

    @property
    def names(self) -> list[str]:
        """Names of its tasks."""
        return list(self.loaded["tasks"])


def open_tasks(entries: Sequence[TaskConfig], documents: Sequence[str], folder: Path, *, where: str) -> list[OpenTask]:
    """Open all entries.

    Args:
        entries: of `evaluate.tasks` or `train.tasks`.
        documents: the held-out texts that our own tasks are made from.
        folder: for our own tasks' files and the data that `datasets` prepares.
        where: the key in the configuration.

    Raises:
        ConfigError: a task doesn't exist, its file is faulty, its data isn't on this machine, it can't be run here, or
            two have the same name; one line per fault.
    """
    opener = _Opener(documents, folder, where)
    opened: list[OpenTask] = []
    faults: list[str] = []
    with isolated():
        for entry in entries:
            try:
                opened.append(opener.open(entry))
            except ConfigError as error:
                faults += error.faults
    names = [name for task in opened for name in [*task.names, *task.loaded.get("groups", {})]]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            faults.append(f"{where}: {name}: is there {names.count(name)} times: figures are named after the task")
    if faults:
        raise ConfigError(*faults)
    return opened


class _Opener:
    def __init__(self, documents: Sequence[str], folder: Path, where: str) -> None:
        self.documents, self.folder, self.where = documents, folder, where

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue()

    def open(self, entry: TaskConfig) -> OpenTask:
        made, limit = None, entry.limit
        if entry.name in BUILT_IN:
            made = self._make(entry)
            loaded = self._load(entry, TaskManager(include_defaults=False), self._settings(made))
        elif entry.path is not None:
            read_yaml_task(entry, self.where)
            settings = load_yaml(entry.path, resolve_func=entry.allow_code)
            settings = with_local_data(settings, Path(entry.path))
            loaded = self._load(entry, TaskManager(include_defaults=False), self._with_cache(settings))
        else:
            name = str(entry.name)
            self.catalogue.require(name, self.where)
            folders = self.catalogue.folders(name)
            manager = TaskManager(include_defaults=False, include_path=[str(folder) for folder in folders])
            loaded = self._load(entry, manager, name)
        for name, task in loaded["tasks"].items():
            self._require_runnable(entry, name, task)
            _set_examples(task, entry)
        return OpenTask(entry=entry, loaded=loaded, limit=None if made else limit, made=made)

    def _make(self, entry: TaskConfig) -> Path:
        task = make_task(str(entry.name), self.documents, seed=entry.seed, count=entry.limit, where=self.where)
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = entry.limit
        log.info("tasks: %s: %d questions from %s", task.name, len(task.items), task.form)
        if wanted is not None and len(task.items) < wanted:
            log.warning(
                "%s: %s: the held-out split has room for %d of %d questions",
                self.where,
                task.name,
                len(task.items),
                wanted,
            )
        return write_task(task, entry.seed, self.folder)

    def _settings(self, path: Path) -> dict[str, Any]:
        return self._with_cache(with_local_data(load_yaml(path, resolve_func=False), path))

    def _with_cache(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Local data is prepared in our folder; what is of the Hub is in the machine's cache."""
        if "data_files" not in (settings.get("dataset_kwargs") or {}):
            return settings
        kwargs = {"cache_dir": str(self.folder / "datasets"), **settings["dataset_kwargs"]}
        return {**settings, "dataset_kwargs": kwargs}

    def _load(self, entry: TaskConfig, manager: TaskManager, spec: str | dict[str, Any]) -> Any:
        head = f"{self.where}: {entry.label}"
        try:
            return manager.load([spec])
        except CodeFromHubError as error:
            raise ConfigError(
                f"{head}: {error}, which isn't run: choose a task with metrics of lm-eval's own"
            ) from error
        except ModuleNotFoundError as error:
            raise ConfigError(f"{head}: needs the Python package {error.name}, which isn't installed") from error
        except Exception as error:  # a task's own code may raise anything
            if _is_of_the_network(error):
                raise ConfigError(
                    f"{head}: its data is on the Hugging Face Hub and not in the cache of this machine"
                    f" ({datasets.config.HF_DATASETS_CACHE}): {_remedy(entry)}"
                ) from error
            raise ConfigError(f"{head}: lm-eval can't load it: {typed_line(error)}") from error

    def _require_runnable(self, entry: TaskConfig, name: str, task: Any) -> None:
        head = f"{self.where}: {name}"
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(f"{head}: runs code that the model writes: not here")
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError(f"{head}: asks about pictures or sound: the models take text alone")
        for metric, function in getattr(task, "_metric_fn_list", {}).items():
            if metric == "bypass" or (function is None and task.config.process_results is None):
                raise ConfigError(f"{head}: its metric {metric} gives no number here: use another task")
        try:
            count = len(task.eval_docs)
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"{head}: its data can't be read: {first_line(error)}") from error
        if not count:
            raise ConfigError(f"{head}: its split has no questions")
        examples = task.config.num_fewshot
        if entry.num_fewshot is not None and entry.num_fewshot != examples and examples == 0:
            raise ConfigError(
                f"{head}: num_fewshot = {entry.num_fewshot}: the task itself says 0, which lm-eval keeps: leave it out"
            )


def _set_examples(task: Any, entry: TaskConfig) -> None:
    if entry.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=entry.num_fewshot)
    elif task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)


def _is_of_the_network(error: BaseException | None) -> bool:
    """Whether offline mode, or a missing connection, is what failed."""
    while error is not None:
        if isinstance(error, ConnectionError) or "OfflineMode" in type(error).__name__:
            return True
        if type(error).__name__ in ("DatasetNotFoundError", "LocalEntryNotFoundError"):
            return True
        error = error.__cause__ or error.__context__
    return False


def _remedy(entry: TaskConfig) -> str:
    home = os.environ.get("HF_HOME")
    given = "HF_HOME as it is" if home else "HF_HOME as you like"
    name = entry.name or "TASK"
    return (
        f"fetch it on a machine with network (`lm_eval --model dummy --tasks {name} --limit 1`, {given}) and bring the"
        " folder HF_HOME here, or give a YAML file with dataset_path: json and local data_files"
    )
