"""The model as MLflow keeps it: a pyfunc from code, with the folders of the float and the quantised models inside.

Nothing is pickled: MLflow stores the script `ava_core/serving/model_from_code.py`, an archive of our sources, and the
artifact folders as they are, manifests included. A version therefore runs the code that it was registered with. The
digests of all of it (`ava_core.runtime.pins`) are a tag in the database, out of reach for whoever may change the files.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.config.generation import GenerationConfig
from ava_core.registry.code import PACKAGE, write_code
from ava_core.registry.requirements import requirements
from ava_core.runtime import pins

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

SCRIPT = PACKAGE / "serving" / "model_from_code.py"


@dataclass(frozen=True, kw_only=True)
class Final:
    """The figures that MLflow shows on the model's page.

    Attributes:
        figures: by name.
        step: of the training, at its end.
        time: milliseconds since 1970.
        dataset: what they were measured on, an input of the run: its `name` and `digest`. MLflow's pages of models
            group the figures by it. Empty if it isn't known.
    """

    figures: Mapping[str, float]
    step: int
    time: int
    dataset: Mapping[str, str]


def find_logged_models(client: MlflowClient, experiment_id: str, identity: Mapping[str, str]) -> list[LoggedModel]:
    """The finished logged models with these tags, the oldest first; unfinished ones of a killed call are deleted."""
    from mlflow.entities import LoggedModelStatus

    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in identity.items())
    ready = []
    for model in client.search_logged_models([experiment_id], filter_string=wanted):
        if model.status == LoggedModelStatus.READY:
            ready.append(model)
        else:
            client.delete_logged_model(model.model_id)
    return sorted(ready, key=lambda model: model.creation_timestamp)


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
    final: Final,
    scratch: Path,
) -> LoggedModel:
    """Upload the model as a logged model of MLflow's, an output of the run.

    `mlflow.pyfunc.log_model` does the same, but requests the history of each metric by itself, and leaves no moment
    between writing the files and uploading them in which they could be digested.

    Args:
        client: client of the server.
        experiment_id: experiment of the run.
        run_id: the run that made it.
        name: its name.
        artifacts: folders by artifact name; each becomes `artifacts/NAME`.
        generation: defaults of the prediction's parameters.
        identity: tags by which `find_logged_models` finds it.
        parameters: parameters shown on its page.
        final: figures shown on its page.
        scratch: folder for temporary copies, as large as the model.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    model = client.create_logged_model(
        experiment_id,
        name=name,
        source_run_id=run_id,
        tags=dict(identity),
        params=dict(parameters),
        model_type="causal language model",
    )
    folder = scratch / "model"
    _write(folder, model, run_id, artifacts, generation, scratch)
    for compiled in folder.rglob("__pycache__"):
        shutil.rmtree(compiled)
    # Before the files: a model that is there has its pins.
    client.set_logged_model_tags(model.model_id, {pins.TAG: json.dumps(pins.describe(folder), sort_keys=True)})
    client.log_model_artifacts(model.model_id, str(folder))
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, final.step)])
    metrics = [
        Metric(
            figure,
            value,
            final.time,
            final.step,
            model_id=model.model_id,
            dataset_name=final.dataset.get("name"),
            dataset_digest=final.dataset.get("digest"),
            run_id=run_id,
        )
        for figure, value in final.figures.items()
    ]
    client.log_batch(run_id, metrics=metrics)
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _write(
    folder: Path,
    model: LoggedModel,
    run_id: str,
    artifacts: Mapping[str, Path],
    generation: GenerationConfig,
    scratch: Path,
) -> None:
    """Write the pyfunc's folder, as it is uploaded."""
    import mlflow
    from mlflow.models import Model

    from ava_core.serving.pyfunc import signature

    folders = scratch / "artifacts"
    folders.mkdir()
    for artifact, source in artifacts.items():
        # MLflow names an artifact after its folder, and a step's output may be called anything.
        shutil.copytree(source, folders / artifact, copy_function=_link)
    code = scratch / f"{PACKAGE.name}.zip"
    write_code(code)
    described = Model(
        artifact_path=model.artifact_location, model_uuid=model.model_id, run_id=run_id, model_id=model.model_id
    )
    with _temporary_files_in(scratch), warnings.catch_warnings():
        # An example would be run through the model, in a server that is started for it.
        warnings.filterwarnings("ignore", r".*input example was not provided", UserWarning)
        mlflow.pyfunc.save_model(
            str(folder),
            mlflow_model=described,
            python_model=str(SCRIPT),
            artifacts={artifact: str(folders / artifact) for artifact in artifacts},
            code_paths=[str(code)],
            pip_requirements=requirements("ava_core.serving.model_from_code"),
            signature=signature(generation),
        )


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
