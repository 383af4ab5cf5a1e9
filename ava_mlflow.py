"""MLflow's `models:/...` for environments with Ava: downloaded files are verified against the registry before use.

`mlflow.pyfunc.load_model` runs the script that lies in the artifact store. MLflow finds this module by its entry point
`mlflow.artifact_repository`, so `load_model`, `mlflow models serve --env-manager
local` and `mlflow artifacts download` check the digests that `ava register` put into the database. Models without them
are passed through.

Not a part of `ava_core`: MLflow imports it with every start, and a version brings its own `ava_core`, which isn't taken
where a program has begun to use another.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository


class VerifiedModels(ModelsArtifactRepository):
    """Artifacts of registered versions and of logged models."""

    def download_artifacts(self, artifact_path: str, dst_path: Any = None, lineage_header_info: Any = None) -> str:
        """Download a file, a folder or, for `""`, everything, and verify the files whose digests the registry has.

        Always a copy: from a store on this machine MLflow would read in place, where the files can change after the
        check, and where Python leaves the compiled script, which it would run in the script's place the next time.

        Raises:
            IntegrityError: a file isn't the one that was registered.
        """
        dst_path = dst_path or tempfile.mkdtemp(prefix="ava-model-")
        local = super().download_artifacts(artifact_path, dst_path, lineage_header_info)
        shutil.rmtree(Path(local, "__pycache__"), ignore_errors=True)
        with _our_code():
            from ava_core.serving import registered

            registered.check_download(Path(local), self._tags(), artifact_path.strip("/"))
        return local

    def _tags(self) -> dict[str, str]:
        from mlflow import MlflowClient

        client = MlflowClient(self.tracking_uri, self.registry_uri)
        if self.model_version is not None:
            return client.get_model_version(self.model_name, str(self.model_version)).tags
        return client.get_logged_model(self.artifact_uri.removeprefix("models:/")).tags


@contextmanager
def _our_code() -> Iterator[None]:
    """Ava's modules inside the block; those that weren't there before are forgotten again."""
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "ava_core":
                del sys.modules[name]
