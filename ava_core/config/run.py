"""The section `run`: what a run is called, and where its figures go beside MLflow."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ava_core.config.section import AnyText, Section, Text

TrackerName = Literal["tensorboard", "wandb", "jsonl"]
"""Each has a module in `ava_core.tracking.sinks`."""
TagName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./ -]{0,249}$")]
TagValue = Annotated[str, Field(min_length=1, max_length=5000)]


class RunConfig(Section):
    """What a run is called, and where its figures go. Nothing in it changes a result, so no step's key holds it."""

    name: Annotated[Text, Field(max_length=250)] | None = None
    """Of the run in MLflow and the other trackers; null: that of the step, or of the pipeline run."""
    tags: dict[TagName, TagValue] = {}
    """Tags of the run, by name; those of Ava and MLflow begin with `ava.` and `mlflow.`."""
    notes: Annotated[AnyText, Field(max_length=5000)] | None = None
    """What the run is about, in Markdown: the description on its page."""
    trackers: list[TrackerName] = []
    """Where the training's figures are written to, beside MLflow if there is an address."""
    folder: Text | None = None
    """Folder of what trackers write; null: OUTPUT.tracking, beside the model's folder."""

    @model_validator(mode="after")
    def _is_told_apart(self) -> RunConfig:
        for name in self.tags:
            if name.startswith(("ava.", "mlflow.")):
                raise ValueError(f"tags.{name} = {self.tags[name]}: begins as those that Ava and MLflow set: rename it")
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers = {self.trackers}: names one twice")
        return self
