"""A step's inputs: the folders that it may read, verified before it runs and looked at again after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ava_core.errors import AvaError
from ava_core.runtime import manifest
from ava_core.runtime.digests import digest_tree
from ava_core.runtime.request import Request
from ava_core.steps.spec import Input
from ava_core.steps.tools import makers


@dataclass(frozen=True)
class Inputs:
    """Digests of a step's inputs, by name.

    Attributes:
        contents: of the files of each input.
        manifests: of the manifest of each input that has one.
    """

    contents: dict[str, str]
    manifests: dict[str, str]


def verify_inputs(request: Request) -> Inputs:
    """Verify every input against its manifest.

    Raises:
        AvaError: there is no such folder, or it is an output of another kind.
        IntegrityError: a file was changed.
    """
    contents = dict(request.digest_inputs()) if request.digest_inputs else {}
    manifests: dict[str, str] = {}
    for port in request.spec.inputs:
        if port.name in contents:
            continue
        found = [_digest_input(port, folder) for folder in request.inputs.get(port.name, [])]
        # A repeated input is a set: in which order they are given makes no difference.
        for index, (digest, origin) in enumerate(sorted(found)):
            name = f"{port.name}.{index}" if port.repeated else port.name
            contents[name] = digest
            if origin:
                manifests[name] = origin
    return Inputs(contents, manifests)


def _digest_input(port: Input, folder: Path) -> tuple[str, str]:
    """Digest of the contents, and of the manifest or an empty string."""
    if port.kind is not None:
        found = manifest.verify(folder, *makers(port.kind))
        return found.digest, found.sha256
    if folder.is_dir():
        return digest_tree(folder), ""
    raise AvaError(f"--{port.name} {folder}: no such folder")


def require_unchanged(request: Request, identity: manifest.Manifest) -> None:
    """Verify the inputs again when the step has computed; files with the same inode and times aren't hashed again.

    Raises:
        AvaError: an input was changed or removed meanwhile, so nothing tells what the output was made from.
    """
    remedy = "the output is not kept: put the input back and run the step again, it goes on from its state"
    known = {*identity.inputs.values()}
    for port in request.spec.inputs:
        for folder in request.inputs.get(port.name, []) if port.kind else []:
            try:
                same = manifest.verify(folder).digest in known
            except AvaError as error:
                raise AvaError(f"{error}; it was when {request.spec.name} began: {remedy}") from error
            if not same:
                raise AvaError(f"--{port.name} {folder}: was replaced while {request.spec.name} ran: {remedy}")
