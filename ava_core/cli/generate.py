"""`ava generate`: let a model continue prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ava_core.config.schema import GenerationConfig

REGISTRY_SCHEME = "models:/"
CACHE = Path(".ava/models")


def generate(
    prompt: Annotated[list[str], typer.Option(help="Text to continue; may be given several times.")],
    model: Annotated[
        str,
        typer.Option(
            help="Output folder of `ava train` or `ava quantize`, or models:/NAME@ALIAS, models:/NAME/VERSION."
        ),
    ] = f"{REGISTRY_SCHEME}ava-moe@champion",
    strategy: Annotated[str, typer.Option(help="greedy, beam or nucleus.")] = "nucleus",
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to add, at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of nucleus sampling; > 0.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability mass of nucleus sampling; in (0, 1].")] = None,
    num_beams: Annotated[int | None, typer.Option(min=2, help="Width of beam search.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Divides the logits of tokens that occurred; 1: off.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the sampling.")] = 1337,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: as many as there are.")] = 0,
) -> None:
    """Let a model continue each --prompt; the texts go to standard output, a line of dashes between them."""
    from ava_core.generation.strategies import require_strategy

    given = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "num_beams": num_beams,
        "repetition_penalty": repetition_penalty,
    }
    settings = _settings({name: value for name, value in given.items() if value is not None})
    require_strategy(strategy)

    # Only now, because PyTorch takes seconds to import: a wrong flag is refused at once.
    from ava_core.generation import generate as decode
    from ava_core.generation import load_model

    loaded, tokenizer = load_model(_folder(model), threads)
    texts = decode(loaded, tokenizer, prompt, strategy=strategy, settings=settings, seed=seed)
    print("\n---\n".join(texts))


def _settings(given: dict[str, Any]) -> GenerationConfig:
    """The configuration's defaults with the flags over them, held to the configuration's own bounds."""
    from pydantic import ValidationError

    from ava_core.config.schema import GenerationConfig
    from ava_core.errors import ConfigError

    try:
        return GenerationConfig(**given)
    except ValidationError as error:
        raise ConfigError(*(_describe(fault) for fault in error.errors())) from error


def _describe(fault: Any) -> str:
    flag = str(fault["loc"][0]).replace("_", "-")
    return f"--{flag} {fault['input']}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"


def _folder(model: str) -> Path:
    if not model.startswith(REGISTRY_SCHEME):
        return Path(model)
    from ava_core.registry import download_model
    from ava_core.tracking import tracking_uri

    return download_model(model, tracking_uri(), CACHE)
