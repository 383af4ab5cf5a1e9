"""`ava generate`: let a model continue prompts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ava_core.steps.schemes import SMALLEST_FIRST

if TYPE_CHECKING:
    from ava_core.config.generation import GenerationConfig

REGISTRY_SCHEME = "models:/"
CACHE = Path(".ava/models")
FLOAT = "float"


def generate(
    prompt: Annotated[list[str] | None, typer.Option(help="Text to continue; may be given several times.")] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option(help='File with a prompt per line, as text or as JSON {"prompt": ...}; - is standard input.'),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="Output folder of `ava train` or `ava quantize`, or models:/NAME@ALIAS, models:/NAME/VERSION."
        ),
    ] = f"{REGISTRY_SCHEME}ava-moe@champion",
    weights: Annotated[
        str,
        typer.Option(
            help=f"Weights of a registered model: {FLOAT}, {', '.join(SMALLEST_FIRST)}, or auto for the smallest"
            " quantised ones."
        ),
    ] = FLOAT,
    strategy: Annotated[str, typer.Option(help="greedy, beam, nucleus, top-k or min-p.")] = "nucleus",
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to add, at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature; > 0.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability mass of nucleus sampling; in (0, 1].")] = None,
    top_k: Annotated[int | None, typer.Option(help="Most probable tokens to sample from; 0: all.")] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Least probability relative to the most probable token; in [0, 1]."),
    ] = None,
    num_beams: Annotated[int | None, typer.Option(min=2, help="Width of beam search.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Divides the logits of tokens that occurred; 1: off.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends a continuation; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of sampling, for each prompt.")] = 1337,
    stream: Annotated[bool, typer.Option("--stream", help="Print tokens as they come; for one prompt.")] = False,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help='Print a line {"prompt": ..., "text": ...} per prompt.')
    ] = False,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0: all that it may use.")] = 0,
) -> None:
    """Let a model continue prompts; the texts go to standard output, a line of dashes between them."""
    from ava_core.errors import ConfigError
    from ava_core.generation.strategies import require_strategy, require_streamable
    from ava_core.runtime import logs

    logs.configure()
    given = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "num_beams": num_beams,
        "repetition_penalty": repetition_penalty,
        "stop": stop or None,
    }
    settings = _settings({name: value for name, value in given.items() if value is not None})
    require_strategy(strategy)
    prompts = [*(prompt or []), *(_read_prompts(prompts_file) if prompts_file else [])]
    if not prompts:
        raise ConfigError("no prompt: give --prompt or --prompts-file")
    _require_unicode(prompts)
    if stream:
        require_streamable(strategy, len(prompts))
    if stream and jsonl:
        raise ConfigError("--stream: prints plain text: leave out --jsonl")
    _require_weights(model, weights)

    # Only now, because PyTorch takes seconds to import: a wrong flag is refused at once.
    from ava_core.generation.decoding import generate as decode
    from ava_core.generation.loading import load_model

    loaded, tokenizer = load_model(_folder(model, weights), threads)
    show = _Shown(prompts[0]) if stream else None
    texts = decode(loaded, tokenizer, prompts, strategy=strategy, settings=settings, seed=seed, show=show)
    if show is not None:
        show("\n")
    elif jsonl:
        for given_prompt, text in zip(prompts, texts, strict=True):
            print(json.dumps({"prompt": given_prompt, "text": text[len(given_prompt) :]}, ensure_ascii=False))
    else:
        print("\n---\n".join(texts))


class _Shown:
    """Prints pieces as they come; the prompt goes before the first, when the model has taken it."""

    def __init__(self, prompt: str) -> None:
        self._before = prompt

    def __call__(self, text: str) -> None:
        print(self._before + text, end="", flush=True)
        self._before = ""


def _read_prompts(source: str) -> list[str]:
    """Prompts of a file, one per line; empty lines are skipped."""
    from ava_core.errors import ConfigError

    name = "standard input" if source == "-" else source
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        # Not splitlines, which takes form feeds and Unicode's own separators for ends of lines as well.
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except OSError as error:
        raise ConfigError(f"--prompts-file {source}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompts-file {name}: isn't valid UTF-8 at byte {error.start}") from error
    return [_prompt_of(line, f"{name}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _prompt_of(line: str, where: str) -> str:
    from ava_core.errors import ConfigError
    from ava_core.files import parse_json

    if not line.lstrip().startswith("{"):
        return line
    try:
        prompt = parse_json(line)["prompt"]
    except (ValueError, KeyError) as error:
        raise ConfigError(f'{where}: starts like JSON: must be {{"prompt": "..."}}') from error
    if not isinstance(prompt, str):
        raise ConfigError(f"{where}: prompt = {json.dumps(prompt)}: must be a string")
    return prompt


def _require_unicode(prompts: list[str]) -> None:
    """An argument in another encoding, or half of a surrogate pair in JSON, is no text."""
    from ava_core.errors import ConfigError

    for prompt in prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"prompt {prompt[:32]!a}: isn't valid UTF-8 at character {error.start}") from error


def _settings(given: dict[str, Any]) -> GenerationConfig:
    """The configuration's defaults with the flags over them, held to the configuration's own bounds."""
    from pydantic import ValidationError

    from ava_core.config.generation import GenerationConfig
    from ava_core.errors import ConfigError

    try:
        return GenerationConfig(**given)
    except ValidationError as error:
        raise ConfigError(*(_describe(fault) for fault in error.errors())) from error


def _describe(fault: Any) -> str:
    flag = str(fault["loc"][0]).replace("_", "-")
    return f"--{flag} {fault['input']}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"


def _require_weights(model: str, weights: str) -> None:
    from ava_core.errors import ConfigError

    known = (FLOAT, "auto", *SMALLEST_FIRST)
    if weights not in known:
        raise ConfigError(f"--weights {weights}: must be one of {', '.join(known)}")
    if weights != FLOAT and not model.startswith(REGISTRY_SCHEME):
        raise ConfigError(f"--weights {weights}: chooses among those of a registered model: {model} holds its own")


def _folder(model: str, weights: str) -> Path:
    if not model.startswith(REGISTRY_SCHEME):
        return Path(model)
    from ava_core.registry import download_model
    from ava_core.registry.download import TRAINED
    from ava_core.tracking import tracking_uri

    return download_model(model, tracking_uri(), CACHE, TRAINED if weights == FLOAT else weights).folder
