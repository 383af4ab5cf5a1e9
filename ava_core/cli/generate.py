"""`ava generate`: let a model continue prompts."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ava_core.cli.chosen_model import DEFAULT_MODEL, FLOAT, Model, Threads, Weights, model_folder, require_weights
from ava_core.cli.decoding_settings import choose, fitting
from ava_core.cli.looking_up import EmbeddingModel, Labels, open_look_up, prompts_with_passages, sources_of
from ava_core.cli.looking_up import Mode as SearchMode
from ava_core.cli.uses import USES

if TYPE_CHECKING:
    from ava_core.config.generation import GenerationConfig
    from ava_core.generation.constraints import Constraint
    from ava_core.retrieval.placing import Placed


def generate(
    prompt: Annotated[list[str] | None, typer.Option(help="Text to continue; may be given several times.")] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option(help='File with a prompt per line, as text or as JSON {"prompt": ...}; - is standard input.'),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Prompts are a user's messages, by the chat template: print the answers.")
    ] = False,
    system: Annotated[str, typer.Option(help="System prompt before each message; with --chat.")] = "",
    model: Model = DEFAULT_MODEL,
    weights: Weights = FLOAT,
    use: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="Preset; flags win over it. " + ". ".join(f"{name}: {use}" for name, use in USES.items()) + ".",
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="greedy, beam, contrastive, nucleus, top-k, min-p or typical; nucleus unless --for or --contrastive"
            " says otherwise."
        ),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to add, at most.")] = None,
    min_new_tokens: Annotated[
        int | None, typer.Option(min=0, help="Tokens to add before the document may end; up to --max-new-tokens.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature; > 0.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability mass of nucleus sampling; in (0, 1].")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Most probable tokens to sample from, or to search contrastively; 0: all, or 4.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Least probability relative to the most probable token; in [0, 1]."),
    ] = None,
    typical_p: Annotated[
        float | None,
        typer.Option(help="Probability mass of the typically surprising tokens; in (0, 1]; nucleus, typical."),
    ] = None,
    epsilon_cutoff: Annotated[
        float | None, typer.Option(help="Least probability of a token, in [0, 1); nucleus sampling.")
    ] = None,
    eta_cutoff: Annotated[
        float | None,
        typer.Option(help="The same, less where the distribution is flat; in [0, 1); nucleus sampling."),
    ] = None,
    contrastive: Annotated[
        float | None,
        typer.Option(help="Contrastive search with this weight of the similarity to earlier tokens; in [0, 1]."),
    ] = None,
    num_beams: Annotated[int | None, typer.Option(min=2, help="Width of beam search.")] = None,
    num_beam_groups: Annotated[
        int | None, typer.Option(min=1, help="Groups of beams that avoid each other's tokens; divides --num-beams.")
    ] = None,
    diversity_penalty: Annotated[
        float | None, typer.Option(help="Taken from a log-probability per earlier group's beam with that token; > 0.")
    ] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="Power of the length that beams' scores are divided by; > 1: longer texts.")
    ] = None,
    num_return_sequences: Annotated[
        int, typer.Option(min=1, max=4096, help="Texts for each prompt: samples, or the best beams.")
    ] = 1,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Divides the logits of tokens that occurred; 1: off.")
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option(min=0, help="No so many tokens in a row twice, the prompt included; 0: off.")
    ] = None,
    json_schema: Annotated[
        str | None,
        typer.Option(help="JSON Schema that the text must be valid by: a file, or the schema itself, {...}."),
    ] = None,
    regex: Annotated[str | None, typer.Option(help="Regular expression that the whole text must match.")] = None,
    index: Annotated[
        Path | None, typer.Option(help="Output folder of `ava index`: look up passages for each prompt.")
    ] = None,
    passages: Annotated[int, typer.Option(min=1, max=1000, help="Passages to look up, at most; with --index.")] = 4,
    search_mode: SearchMode = None,
    label: Labels = None,
    embedding_model: EmbeddingModel = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends a continuation; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of sampling, for each prompt.")] = 1337,
    stream: Annotated[bool, typer.Option("--stream", help="Print tokens as they come; for one prompt.")] = False,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help='Print a line {"prompt": ..., "text": ...} per prompt.')
    ] = False,
    threads: Threads = 0,
) -> None:
    """Let a model continue prompts, or answer them; texts go to standard output, a line of dashes between them."""
    from ava_core.errors import ConfigError
    from ava_core.generation.strategies import require_streamable, require_texts
    from ava_core.runtime import logs

    logs.configure()
    flags = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "typical_p": typical_p,
        "epsilon_cutoff": epsilon_cutoff,
        "eta_cutoff": eta_cutoff,
        "penalty_alpha": contrastive,
        "num_beams": num_beams,
        "num_beam_groups": num_beam_groups,
        "diversity_penalty": diversity_penalty,
        "length_penalty": length_penalty,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "stop": stop or None,
    }
    strategy, settings = choose(strategy, {name: value for name, value in flags.items() if value is not None}, use)
    require_texts(strategy, settings, num_return_sequences)
    constraint = _constraint(json_schema, regex, settings)
    prompts = [*(prompt or []), *(_read_prompts(prompts_file) if prompts_file else [])]
    if not prompts:
        raise ConfigError("no prompt: give --prompt or --prompts-file")
    _require_unicode([*prompts, system])
    if system and not chat:
        raise ConfigError("--system: stands before the message of a chat: give --chat as well")
    if stream:
        require_streamable(strategy, len(prompts) * num_return_sequences)
    if stream and jsonl:
        raise ConfigError("--stream: prints plain text: leave out --jsonl")
    require_weights(model, weights)
    if index is None and (search_mode or label or embedding_model or passages != 4):
        raise ConfigError("--passages, --search-mode, --label, --embedding-model: say how --index is searched: give it")

    # Only now, because PyTorch takes seconds to import: a wrong flag is refused at once.
    from ava_core.generation.answers import NO_TEMPLATE, answers
    from ava_core.generation.decoding import generate as decode
    from ava_core.generation.loading import load_model

    looked_up = None
    if index is not None:
        looked_up = open_look_up(
            index, top_k=passages, mode=search_mode, labels=label or (), model=embedding_model, threads=threads
        )
    loaded, tokenizer = load_model(model_folder(model, weights), threads)
    if use is not None and max_new_tokens is None:
        settings = fitting(settings, loaded.config.max_position_embeddings)
    if chat and not tokenizer.chat_template:
        print(NO_TEMPLATE, file=sys.stderr)
    token_ids: list[list[int]] | None = None
    placed: list[Placed] = []
    if looked_up is not None:
        most = loaded.config.max_position_embeddings - settings.max_new_tokens
        token_ids, placed = prompts_with_passages(looked_up, tokenizer, prompts, chat=chat, system=system, most=most)
    show = _Shown("" if chat else prompts[0]) if stream else None
    texts = (partial(answers, system=system) if chat else decode)(
        loaded,
        tokenizer,
        prompts,
        strategy=strategy,
        settings=settings,
        seed=seed,
        constraint=constraint,
        num_return_sequences=num_return_sequences,
        show=show,
        token_ids=token_ids,
    )
    if show is not None:
        show("\n")
    elif jsonl:
        each = [prompt for prompt in prompts for _ in range(num_return_sequences)]
        for number, (given_prompt, text) in enumerate(zip(each, texts, strict=True)):
            row: dict[str, object] = {"prompt": given_prompt, "text": text if chat else text[len(given_prompt) :]}
            if placed:
                row["passages"] = [found.as_json() for found in placed[number // num_return_sequences].found]
            print(json.dumps(row, ensure_ascii=False))
    else:
        print("\n---\n".join(texts))
    for one in placed if not jsonl else ():
        print(*sources_of(one), sep="\n", file=sys.stderr)


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


def _constraint(json_schema: str | None, regex: str | None, settings: GenerationConfig) -> Constraint | None:
    from ava_core.errors import ConfigError
    from ava_core.generation.constraints import Constraint, require_free

    if json_schema is not None and regex is not None:
        raise ConfigError("--regex: can't stand beside --json-schema: give one of them")
    try:
        if regex is not None:
            found = Constraint.regex(regex)
        elif json_schema is not None:
            found = Constraint.json_schema(_schema_text(json_schema))
        else:
            return None
    except ConfigError as error:
        from ava_core.errors import shorten

        flag, value = ("--regex", regex) if regex is not None else ("--json-schema", json_schema)
        raise ConfigError(f"{flag} {shorten(str(value), 60)}: {error}") from error
    require_free(settings)
    return found


def _schema_text(given: str) -> str:
    from ava_core.errors import ConfigError

    if given.lstrip().startswith("{"):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"isn't valid UTF-8 at byte {error.start}") from error
