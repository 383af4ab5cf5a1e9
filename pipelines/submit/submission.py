"""What a submission is: the compiled pipeline, its arguments, and the names under which they are found again."""

from __future__ import annotations

import argparse
import hashlib
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ava_core.errors import ConfigError
from pipelines import command_line, kubernetes
from pipelines.ava_pipeline import NAME
from pipelines.compile import choose_image, compile_configured, parent_folder, require_reachable_models

NAME_CHARACTERS = 12


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What to run, and under which names.

    Attributes:
        ir: the compiled pipeline.
        arguments: the pipeline's parameters.
        commit: what is checked out; empty without git.
        version: name of the pipeline version: the commit and the digest of `ir`.
        name: name of the run: the commit and the digest of the configuration.
        experiment: name of the experiment.
        submit_id: known to this submission only: a run that carries it is this submission's.
        namespace: Kubernetes namespace on a multi-user server; None otherwise.
        plugins: options of the server's plugins, by plugin.
    """

    ir: str
    arguments: dict[str, str]
    commit: str
    version: str
    name: str
    experiment: str
    submit_id: str
    namespace: str | None
    plugins: dict[str, dict[str, Any]]


def from_flags(flags: argparse.Namespace) -> Submission:
    """The submission that the command line asks for.

    Raises:
        ConfigError: one line per fault.
    """
    resolved = command_line.resolve_flags(flags)
    if resolved.preset_reason:
        raise ConfigError("preset: auto: would be chosen by this machine's hardware, not the cluster's: name a preset")
    config = resolved.config
    kubernetes.check(config)
    require_reachable_models(config)
    plugins = plugin_options(flags.plugin)
    commit = command_line.head_commit()
    parent = parent_folder(config)
    if parent is not None and not urlsplit(parent).scheme:
        raise ConfigError(
            f"train.init = {parent}: no pod sees that folder: give models:/NAME@ALIAS, or an address that the cluster"
            " can read, such as s3://bucket/model"
        )
    ir = compile_configured(config, choose_image(flags.image))
    short = commit[:NAME_CHARACTERS] or "uncommitted"
    return Submission(
        ir=ir,
        arguments={
            "params_yaml": command_line.params_yaml(config),
            "data_uri": flags.data_uri,
            "tracking_uri": flags.tracking_uri,
            "git_commit": commit,
            **({"init_uri": parent} if parent else {}),
        },
        commit=commit,
        version=f"{short}-{hashlib.sha256(ir.encode()).hexdigest()[:NAME_CHARACTERS]}",
        name=f"{NAME} {short} {command_line.digest(config)}",
        experiment=flags.experiment,
        submit_id=flags.submit_id or uuid.uuid4().hex,
        namespace=flags.namespace,
        plugins=plugins,
    )


def plugin_options(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["mlflow.experiment_name=ava"]` as the API takes it: `{"mlflow": {"experiment_name": "ava"}}`.

    Raises:
        ConfigError: a setting of another form.
    """
    options: dict[str, dict[str, Any]] = {}
    faults = []
    for setting in settings:
        match = re.fullmatch(r"([\w-]+)\.([\w-]+)=(.*)", setting)
        if match is None:
            faults.append(f"--plugin {setting}: must be PLUGIN.OPTION=VALUE, such as mlflow.experiment_name=ava")
            continue
        plugin, option, text = match.groups()
        # Only true and false are anything but text: the id of an experiment is text too, though it is all digits.
        options.setdefault(plugin, {})[option] = {"true": True, "false": False}.get(text, text)
    if faults:
        raise ConfigError(*faults)
    return options
