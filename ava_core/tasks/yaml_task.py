"""A user's own task: a YAML file in lm-eval's form, checked before lm-eval sees it.

lm-eval runs the Python functions that such a file names with `!function`, in files beside it or anywhere. Here that
needs `allow_code: true` of the entry that names the file. The checks themselves run nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ava_core.config.tasks import TaskConfig
from ava_core.errors import ConfigError, first_line, shorten
from ava_core.runtime.digests import digest_file, digest_value

FUNCTION = "!function"
LARGEST = 1_000_000
"""Bytes of a file."""
LOCAL_FORMATS = ("json", "csv", "parquet", "arrow", "text")
"""Formats of data files: what `datasets` reads without running code."""
NEVER = {
    "use_prompt": "templates of promptsource are fetched: write doc_to_text and doc_to_target instead",
    "group": "names a group: list its tasks one by one",
    "doc_to_image": "the models take text alone",
    "doc_to_audio": "the models take text alone",
}
"""Keys that aren't taken, and why."""
CODE_KEYS = ("class", "custom_dataset")
"""Keys whose value is always code."""
STRUCTURE = ("include", "tag", "class")
"""Keys of a file that are no field of lm-eval's `TaskConfig`."""


@dataclass(frozen=True)
class YamlTask:
    """A checked file.

    Attributes:
        name: what the task calls itself.
        files: the file and those that it includes; and, with `allow_code`, the modules beside them.
        data: its data files, where they are local.
    """

    name: str
    files: list[Path]
    data: list[Path]


def read_yaml_task(entry: TaskConfig, where: str) -> YamlTask:
    """Check the file at `entry.path`, and what it includes.

    Raises:
        ConfigError: it can't be read, or holds what isn't taken; one line per fault, each naming file and key.
    """
    path = Path(entry.path or "")
    values, files, faults = _read(path, where, entry.allow_code, ())
    if not faults:
        faults = [f"{where}: {path}: {fault}" for fault in _faults(values, entry, path)]
    if faults:
        raise ConfigError(*faults)
    modules = sorted(module for file in files for module in file.parent.glob("*.py")) if entry.allow_code else []
    return YamlTask(values["task"], [*files, *dict.fromkeys(modules)], data_files(values, path))


def digest_files(entries: Sequence[TaskConfig], where: str) -> dict[str, str]:
    """`tasks`: a digest of all that the entries with a file read; nothing where there are none.

    Raises:
        ConfigError: a file is faulty.
    """
    found = [read_yaml_task(entry, where) for entry in entries if entry.path is not None]
    if not found:
        return {}
    return {"tasks": digest_value([[digest_file(path) for path in [*task.files, *task.data]] for task in found])}


def data_files(values: dict[str, Any], path: Path) -> list[Path]:
    """Local data files of a task's settings; relative ones lie beside the file at `path`."""
    given = (values.get("dataset_kwargs") or {}).get("data_files")
    return [file for name in _names(given) if not _is_address(name) for file in _matches(path, name)]


def with_local_data(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings with the paths of data files as they are from anywhere."""
    kwargs = dict(values.get("dataset_kwargs") or {})
    if "data_files" in kwargs:
        kwargs["data_files"] = _located(kwargs["data_files"], path)
    folder = _beside(path, str(values.get("dataset_path")))
    located = {"dataset_path": str(folder)} if folder.is_dir() else {}
    return {**values, **located, **({"dataset_kwargs": kwargs} if kwargs else {})}


def _located(given: Any, path: Path) -> Any:
    if isinstance(given, dict):
        return {split: _located(names, path) for split, names in given.items()}
    if isinstance(given, list):
        return [_located(name, path) for name in given]
    return given if _is_address(str(given)) else str(_beside(path, str(given)))


def _beside(path: Path, name: str) -> Path:
    return (path.parent / name).absolute()


def _matches(path: Path, name: str) -> list[Path]:
    """The files that a name or a pattern stands for."""
    plain = _beside(path, name)
    if plain.is_file():
        return [plain]
    return sorted(path.parent.absolute().glob(name)) if not Path(name).is_absolute() else []


def _names(given: Any) -> Iterator[str]:
    if isinstance(given, dict):
        given = list(given.values())
    if isinstance(given, list):
        for item in given:
            yield from _names(item)
    elif given is not None:
        yield str(given)


def _is_address(name: str) -> bool:
    return "://" in name


def _read(
    path: Path, where: str, allow_code: bool, including: tuple[Path, ...]
) -> tuple[dict[str, Any], list[Path], list[str]]:
    """Values of a file over those that it includes, the files, and faults as whole lines."""
    head = f"{where}: {path}"
    if path.resolve() in including:
        return {}, [], [f"{head}: include: the file includes itself"]
    try:
        content = path.read_bytes()
        if len(content) > LARGEST:
            return {}, [], [f"{head}: has {len(content):,} bytes: must have at most {LARGEST:,}"]
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except OSError as error:
        return {}, [], [f"{head}: {error.strerror}: name the YAML file of a task"]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        return {}, [], [f"{head}: {line}not valid YAML: {getattr(error, 'problem', None) or first_line(error)}"]
    if not isinstance(root, yaml.MappingNode):
        return {}, [], [f"{head}: must be a mapping with the keys of a task"]
    faults = [f"{head}: {key or 'line 1'}: {fault}" for key, fault in _tag_faults(root, "", allow_code, frozenset())]
    if faults:
        return {}, [path], faults
    values = yaml.load(content, Loader=_Loader)  # noqa: S506  a SafeLoader
    included, files = {}, [path]
    for name in _names(values.pop("include", None)):
        below, more, wrong = _read(path.parent / name, where, allow_code, (*including, path.resolve()))
        below.pop("task_list", None)
        included.update(below)
        files += more
        faults += wrong
    return {**included, **values}, files, faults


class _Code(str):
    """What stands behind `!function`."""


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor(FUNCTION, lambda loader, node: _Code(node.value))


def _tag_faults(node: yaml.Node, key: str, allow_code: bool, above: frozenset[int]) -> Iterator[tuple[str, str]]:
    """Keys with a tag that isn't plain YAML's, and what is wrong with them."""
    if id(node) in above:
        yield key, "an alias of what it stands in"
        return
    above |= {id(node)}
    if node.tag == FUNCTION:
        name = shorten(str(node.value))
        if not allow_code:
            yield key, f"{FUNCTION} {name}: is code to be run: read it, then set allow_code: true for this file"
        elif not isinstance(node, yaml.ScalarNode):
            yield key, f"{FUNCTION}: must be followed by MODULE.FUNCTION"
    elif not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        yield key, f"{node.tag}: unknown tag"
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _tag_faults(value, f"{key}.{name.value}" if key else str(name.value), allow_code, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _tag_faults(value, f"{key}[{index}]", allow_code, above)


def _faults(values: dict[str, Any], entry: TaskConfig, path: Path) -> Iterator[str]:
    """What is wrong with the settings of a task, `KEY: what`."""
    from lm_eval.config.task import TaskConfig as Settings

    known = {field.name for field in dataclasses.fields(Settings)} | {*STRUCTURE, "task"}
    for key in values:
        if key in NEVER:
            yield f"{key}: {NEVER[key]}"
        elif key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            yield f"{key}: unknown key{f': did you mean {close[0]}?' if close else ''}"
    name = values.get("task")
    if not isinstance(name, str) or not name or not all(part.isalnum() or part in "_-." for part in name):
        yield f"task = {shorten(repr(name))}: must be the task's name, of letters, digits, `_`, `-` and `.`"
    if values.get("unsafe_code"):
        yield "unsafe_code: would run code that the model writes: not here"
    for key in CODE_KEYS:
        if key in values and not entry.allow_code:
            yield f"{key}: is code to be run: read it, then set allow_code: true for this file"
    if "class" in values or "custom_dataset" in values:
        return
    yield from _data_faults(values, path)
    yield from _form_faults(values)
    yield from _metric_faults(values)
    if entry.num_fewshot and values.get("num_fewshot") == 0:
        yield f"num_fewshot = 0: the task allows no examples, and the configuration asks for {entry.num_fewshot}"


def _data_faults(values: dict[str, Any], path: Path) -> Iterator[str]:
    dataset = values.get("dataset_path")
    if not isinstance(dataset, str):
        yield f"dataset_path = {dataset!r}: must be one of {', '.join(LOCAL_FORMATS)} with dataset_kwargs.data_files"
        return
    kwargs = values.get("dataset_kwargs") or {}
    if not isinstance(kwargs, dict):
        yield f"dataset_kwargs = {shorten(repr(kwargs))}: must be a mapping"
        return
    local = _beside(path, dataset).is_dir()
    if dataset not in LOCAL_FORMATS and "/" not in dataset and not local:
        yield (
            f"dataset_path = {shorten(dataset)}: must be one of {', '.join(LOCAL_FORMATS)}, a folder, or"
            " OWNER/NAME of the Hugging Face Hub"
        )
    if dataset in LOCAL_FORMATS and not kwargs.get("data_files"):
        yield f"dataset_kwargs.data_files: is missing: dataset_path = {dataset} reads local files"
    for name in _names(kwargs.get("data_files")):
        if _is_address(name):
            yield f"dataset_kwargs.data_files: {shorten(name)}: needs the network: fetch it, and give the local file"
        elif not _matches(path, name):
            yield f"dataset_kwargs.data_files: {shorten(name)}: no such file beside the task's"
        elif not any(file.stat().st_size for file in _matches(path, name)):
            yield f"dataset_kwargs.data_files: {shorten(name)}: is empty"
    if not (values.get("test_split") or values.get("validation_split")):
        yield "test_split: is missing: names the split that is asked"


def _form_faults(values: dict[str, Any]) -> Iterator[str]:
    kinds = ("generate_until", "loglikelihood", "loglikelihood_rolling", "multiple_choice")
    kind = values.get("output_type", kinds[0])
    if kind not in kinds:
        close = difflib.get_close_matches(str(kind), kinds, n=1)
        yield f"output_type = {shorten(str(kind))}: {f'did you mean {close[0]}?' if close else 'unknown'}"
    for key in ("doc_to_text", "doc_to_target", *(["doc_to_choice"] if kind == "multiple_choice" else [])):
        if values.get(key) is None and not values.get("process_results"):
            yield f"{key}: is missing"


def _metric_faults(values: dict[str, Any]) -> Iterator[str]:
    import lm_eval.api.metrics  # noqa: F401  registers them
    from lm_eval.api.registry import aggregation_registry, metric_registry

    metrics = values.get("metric_list")
    if metrics is not None and not isinstance(metrics, list):
        yield f"metric_list = {shorten(repr(metrics))}: must be a list"
        return
    for index, item in enumerate(metrics or ()):
        key = f"metric_list[{index}]"
        name = item.get("metric") if isinstance(item, dict) else None
        if isinstance(name, _Code):
            continue
        if not isinstance(name, str):
            yield f"{key}.metric: is missing: names a metric"
        elif name == "bypass":
            yield f"{key}.metric = bypass: gives no number: leave it out"
        elif item.get("hf_evaluate") or (name not in metric_registry and not values.get("process_results")):
            close = difflib.get_close_matches(name, list(metric_registry), n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(metric_registry))}"
            yield f"{key}.metric = {shorten(name)}: is none of lm-eval's own: {hint}"
        aggregation = item.get("aggregation") if isinstance(item, dict) else None
        if (
            isinstance(aggregation, str)
            and not isinstance(aggregation, _Code)
            and aggregation not in aggregation_registry
        ):
            known = ", ".join(sorted(aggregation_registry))
            yield f"{key}.aggregation = {shorten(str(aggregation))}: there are {known}"
