"""What all parts of one registration need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ava_core import __version__
from ava_core.config.register import RegisterConfig
from ava_core.registry.candidate import Candidate
from ava_core.registry.gates.decision import Decision
from ava_core.registry.versions import EVALUATION
from ava_core.runtime.digests import digest_value

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "ava.model_name"


@dataclass(frozen=True, kw_only=True)
class Context:
    """One registration.

    Attributes:
        client: client of the registry.
        config: the section `register`.
        resolved: the whole configuration, as plain values.
        candidate: the model that is registered.
        decision: what `ava gate` decided; None if it wasn't asked.
        tracking_uri: address of the registry.
        commit: Git commit of code and parameters, if known.
        output: the step's output folder.
    """

    client: MlflowClient
    config: RegisterConfig
    resolved: Mapping[str, Any]
    candidate: Candidate
    decision: Decision | None
    tracking_uri: str
    commit: str | None
    output: Path

    @property
    def identity(self) -> dict[str, str]:
        """The tags by which run and logged model of this registration are found again."""
        return {EVALUATION: self.candidate.digest, NAME: self.config.model_name}

    @property
    def source(self) -> dict[str, str]:
        """What the model was made from."""
        source = {
            "shards": self.candidate.shards_digest,
            "config": digest_value(self.resolved),
            "version": __version__,
        }
        if parent := self.candidate.parent_digest:
            source["parent"] = parent
        return {**source, "commit": self.commit} if self.commit else source
