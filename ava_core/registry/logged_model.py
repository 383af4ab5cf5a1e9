"""The model as MLflow keeps it: a pyfunc from code, with the folders of the float and the quantised models inside.

Nothing is pickled: MLflow stores the script `ava_core/serving/model_from_code.py`, our sources, and the artifact
folders as they are, manifests included. A version therefore runs the code that it was registered with.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.config.schema import GenerationConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

PACKAGE = Path(__file__).resolve().parents[1]
SCRIPT = PACKAGE / "serving" / "model_from_code.py"
# What serving never imports, so that it needn't be uploaded and fetched file by file.
LEFT_OUT = ("__pycache__", "cli", "registry", "tracking", "training", "alignment", "evaluation")
# What the pyfunc imports. Given explicitly: MLflow would otherwise run the model in a process of its own to find out.
REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pydantic", "safetensors", "tokenizers", "torch", "transformers")


def find_logged_model(client: MlflowClient, experiment_id: str, identity: Mapping[str, str]) -> LoggedModel | None:
    """The finished logged model with these tags; unfinished ones of a killed call are deleted."""
    from mlflow.entities import LoggedModelStatus

    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in identity.items())
    ready = None
    for model in client.search_logged_models([experiment_id], filter_string=wanted):
        if model.status == LoggedModelStatus.READY:
            ready = model
        else:
            client.delete_logged_model(model.model_id)
    return ready


def log_model(
    client: MlflowClient,
    *,
    experiment_id: str,
    run_id: str,
    name: str,
    artifacts: Mapping[str, Path],
    generation: GenerationConfig,
    identity: Mapping[str, str],
    parameters: Mapping[str, str],
    step: int,
    scratch: Path,
) -> str:
    """Upload the model and give it to the run; returns its id.

    Args:
        client: client of the server.
        experiment_id: experiment of the run.
        run_id: the run that made it.
        name: its name.
        artifacts: folders by artifact name; each becomes `artifacts/NAME`.
        generation: defaults of the prediction's parameters.
        identity: tags by which `find_logged_model` finds it.
        parameters: parameters shown on its page.
        step: step of the run's final metrics, which are shown on its page as well.
        scratch: folder for temporary copies, as large as the model.
    """
    import mlflow
    from mlflow.models import Model

    from ava_core.serving.pyfunc import signature

    model = client.create_logged_model(
        experiment_id,
        name=name,
        source_run_id=run_id,
        tags=dict(identity),
        params=dict(parameters),
        model_type="causal language model",
    )
    folders = scratch / "artifacts"
    folders.mkdir()
    for artifact, folder in artifacts.items():
        # MLflow names an artifact after its folder, and a step's output may be called anything.
        shutil.copytree(folder, folders / artifact, copy_function=_link)
    code = scratch / PACKAGE.name
    shutil.copytree(PACKAGE, code, ignore=shutil.ignore_patterns(*LEFT_OUT))
    with _temporary_files_in(scratch), warnings.catch_warnings():
        # An example would be run through the model, in a server that is started for it.
        warnings.filterwarnings("ignore", r".*input example was not provided", UserWarning)
        Model.log(
            None,
            flavor=mlflow.pyfunc,
            model_id=model.model_id,
            run_id=run_id,
            step=step,
            python_model=str(SCRIPT),
            artifacts={artifact: str(folders / artifact) for artifact in artifacts},
            code_paths=[str(code)],
            pip_requirements=requirements(),
            signature=signature(generation),
        )
    return model.model_id


def requirements() -> list[str]:
    """The pinned packages that a prediction needs, without local labels (`+cpu`), which indexes don't have."""
    pinned = []
    for name in REQUIREMENTS:
        try:
            pinned.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return pinned


def _link(source: str, target: str) -> None:
    """A second name for a file, or a copy where that can't be; of a link, as DVC makes them, for what it leads to.

    MLflow refuses symbolic links.
    """
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """MLflow copies models through Python's temporary folder, which may be a small memory disk."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
