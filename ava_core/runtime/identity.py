"""A step's key, and whether the output that is asked for is there already under that key.

The key is the digest of everything that determines the output: the step's name, the code that can change it (see
`ava_core.runtime.code`), the configuration sections it reads, its flags, the contents of its inputs, threads and ranks.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ava_core import __version__
from ava_core.config.hardware import kernels_choice, provider_choice
from ava_core.config.schema import AvaConfig
from ava_core.config.section import Section
from ava_core.errors import AvaError, ConfigError
from ava_core.runtime import manifest
from ava_core.runtime.code import code_of
from ava_core.runtime.digests import digest_value
from ava_core.runtime.inputs import Inputs
from ava_core.runtime.request import Request
from ava_core.runtime.work import timings_path
from ava_core.steps.spec import StepSpec


def name_origin(folder: Path, identity: manifest.Manifest) -> None:
    """Update `made_from` in a reused output's manifest: inputs with the same files may come from other runs now."""
    found = manifest.read(folder)
    if found.made_from != identity.made_from:
        manifest.write(folder, replace(found, made_from=identity.made_from))


def identify(request: Request, inputs: Inputs) -> manifest.Manifest:
    """The manifest that the output will have, but for its files: the key and what it is the digest of."""
    spec = request.spec
    code = code_of(spec, request.work)
    asked = (kernels_choice() if code.runs_kernels else {}) | (provider_choice() if code.runs_graphs else {})
    identity: dict[str, Any] = {
        "step": spec.name,
        "code": code.digest,
        "config": digest_value(values_read(spec, request.config)),
        "choices": {**request.choices, **asked},
        "inputs": inputs.contents,
        "threads": request.threads,
        "ranks": request.ranks,
    }
    return manifest.Manifest(key=digest_value(identity), version=__version__, made_from=inputs.manifests, **identity)


def values_read(spec: StepSpec, config: AvaConfig, *, names: bool = False) -> dict[str, Any]:
    """The sections of the configuration that a step reads, as JSON has them, without what only watches the work, and
    unless `names`, without what names an input: that counts by its contents."""
    watching = {name: set(value.watching) for name, value in config if isinstance(value, Section)}
    resolved = config.model_dump(mode="json", by_alias=True, exclude=watching)
    for port in () if names else spec.named_inputs:
        *sections, key = port.setting.split(".")
        section = resolved
        for name in sections:
            section = section[name]
        section.pop(key)
    return {name: resolved[name] for name in spec.sections}


def is_present(request: Request, identity: manifest.Manifest) -> bool:
    """Whether the output exists, is complete and has the same key.

    Raises:
        ConfigError: something else is there, and `--force` isn't given.
    """
    output = request.output
    if not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir())):
        return False
    if not output.is_dir():
        if request.force:
            return False
        raise ConfigError(f"--output {output}: exists and is no folder: pass --force to replace it")
    try:
        key = manifest.verify(output).key
    except AvaError as error:
        if request.force:
            return False
        raise ConfigError(
            f"--output {output}: exists and is not a finished output ({error}): pass --force to replace it"
        ) from error
    if key == identity.key and timings_path(output).exists():
        return True
    if not request.force and key != identity.key:
        raise ConfigError(f"--output {output}: exists and was made from something else: pass --force to replace it")
    return False
