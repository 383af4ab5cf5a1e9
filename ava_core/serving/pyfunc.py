"""The MLflow pyfunc of a registered model: takes prompts, returns prompts with their continuations.

    mlflow.pyfunc.load_model("models:/ava-moe@champion").predict(["To be, or"], params={"strategy": "nucleus"})

Takes a list of strings, one string, or a data frame with a column `prompt`. PyTorch is imported when
MLflow loads the model and not with this module, so that registering one doesn't pay for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from ava_core.config.generation import GenerationConfig
from ava_core.config.threads import let_threads_sleep
from ava_core.errors import AvaError
from ava_core.generation.strategies import STRATEGIES
from ava_core.runtime import manifest
from ava_core.serving.registered import check_loaded
from ava_core.steps.schemes import SMALLEST_FIRST

PROMPT = "prompt"
FLOAT = "float"
AUTO = "auto"
SAMPLING_SEED = 1337
MLMODEL = "MLmodel"


def artifact_name(weights: str) -> str:
    """Name of the artifact that holds these weights: `model` for the trained ones, else the scheme."""
    return "model" if weights == FLOAT else weights


def signature(generation: GenerationConfig) -> Any:
    """The signature: prompts in, texts out, and the decoding parameters with the configured values as defaults.

    The input column has no name, because MLflow refuses a plain list where the signature names the column.
    """
    from mlflow.models import ModelSignature

    text = Schema([ColSpec(DataType.string)])
    parameters = [
        ParamSpec("strategy", DataType.string, "greedy"),
        *(_parameter(name, getattr(generation, name)) for name in GenerationConfig.model_fields),
        ParamSpec("seed", DataType.long, SAMPLING_SEED),
        ParamSpec("weights", DataType.string, AUTO),
    ]
    return ModelSignature(inputs=text, outputs=text, params=ParamSchema(parameters))


def _parameter(name: str, value: int | float | list[str]) -> ParamSpec:
    if isinstance(value, list):
        return ParamSpec(name, DataType.string, list(value), shape=(-1,))
    return ParamSpec(name, DataType.long if isinstance(value, int) else DataType.double, value)


class TextModel(PythonModel):
    """Continues prompts with a quantised model where one was registered, or with the float model."""

    def load_context(self, context: Any) -> None:
        """Import what decodes, and note where the models lie; each is verified and loaded at its first use.

        In a new environment PyTorch's first import compiles it, which takes longer than MLflow's server gives to a
        request, and a server that answers /ping is expected to predict.

        Raises:
            IntegrityError: the files are not those that were registered, as far as the registry can be asked.
        """
        let_threads_sleep()
        folders = {name: Path(path) for name, path in context.artifacts.items()}
        models = {artifact_name(name) for name in (*SMALLEST_FIRST, FLOAT)}  # a version carries its evaluation too
        self._folders = {name: folder for name, folder in folders.items() if name in models}
        roots = {folder.parents[1] for folder in folders.values()}
        for root in roots:
            if (root / MLMODEL).is_file():
                check_loaded(root)
        self._loaded: dict[str, Any] = {}
        from ava_core.generation.decoding import generate  # noqa: F401
        from ava_core.generation.loading import load_model  # noqa: F401

    def predict(self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> list[str]:
        """Continue each prompt.

        With any other type hint MLflow would derive the signature from it and drop the parameters; as it is, MLflow
        turns whatever it is given into a frame.

        Args:
            context: MLflow's; not used.
            model_input: prompts: a data frame with one column, numbered or called `prompt`; a list or a string.
            params: `strategy` (one of `STRATEGIES`), the fields of `GenerationConfig`, `seed`, and `weights`: a scheme
                of quantisation on ONNX Runtime, float on PyTorch, auto for the smallest that this version holds.

        Returns:
            Prompt and continuation, one text per prompt.

        Raises:
            AvaError: a parameter out of range, or weights that were not registered.
            IntegrityError: a file of the model is not the one that was registered.
        """
        from pydantic import ValidationError

        from ava_core.generation.decoding import generate

        values = dict(params or {})
        strategy = values.pop("strategy", "greedy")
        if strategy not in STRATEGIES:
            raise AvaError(f"params.strategy = {strategy}: must be one of {', '.join(STRATEGIES)}")
        seed = int(values.pop("seed", SAMPLING_SEED))
        model, tokenizer = self._load(values.pop("weights", AUTO))
        try:
            settings = GenerationConfig(**values)
        except ValidationError as error:
            fault = error.errors()[0]
            if not fault["loc"]:  # between two parameters
                raise AvaError(f"params.{fault['ctx']['error']}") from error
            name = ".".join(str(part) for part in fault["loc"])
            raise AvaError(f"params.{name} = {fault['input']}: {fault['msg'][0].lower()}{fault['msg'][1:]}") from error
        prompts = read_prompts(model_input)
        if not prompts:
            return []
        return generate(model, tokenizer, prompts, strategy=strategy, settings=settings, seed=seed)

    def _load(self, weights: str) -> Any:
        from ava_core.generation.loading import load_model

        if weights == AUTO:
            weights = next(name for name in (*SMALLEST_FIRST, FLOAT) if artifact_name(name) in self._folders)
        if weights not in self._loaded:
            folder = self._folders.get(artifact_name(weights))
            if folder is None or weights == "model":
                known = ", ".join(sorted({FLOAT if name == "model" else name for name in self._folders}))
                raise AvaError(f"params.weights = {weights}: this version holds {known}")
            manifest.verify(folder)
            self._loaded[weights] = load_model(folder)
        return self._loaded[weights]


def read_prompts(model_input: Any) -> list[str]:
    """The prompts in what MLflow hands to `predict`.

    Raises:
        AvaError: a data frame without a column `prompt`, or something that is no text.
    """
    columns = getattr(model_input, "columns", None)
    if columns is not None:
        # MLflow turns a plain list into a frame whose column is numbered.
        if PROMPT not in columns and list(columns) != [0]:
            raise AvaError(f"input columns {', '.join(map(str, columns))}: must be one column `{PROMPT}`")
        model_input = model_input[PROMPT if PROMPT in columns else 0].tolist()
    prompts = [model_input] if isinstance(model_input, str) else list(model_input)
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise AvaError(f"prompt {prompt!r}: must be a string")
    return prompts
