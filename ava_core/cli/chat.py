"""`ava chat`: talk with a model, on a terminal or through a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ava_core.cli.chosen_model import DEFAULT_MODEL, FLOAT, Model, Threads, Weights, model_folder, require_weights


def chat(
    model: Model = DEFAULT_MODEL,
    weights: Weights = FLOAT,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    load: Annotated[Path | None, typer.Option(help="Conversation that /save wrote, to go on with.")] = None,
    use: Annotated[str, typer.Option("--for", help="Preset of decoding, as `ava generate --for` has it.")] = "dialogue",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting of decoding, KEY=VALUE, as /set changes it: temperature, top_p ... Repeatable."
        ),
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="Any of `ava generate` but beam.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the first answer; the next has one more.")] = 1337,
    chat_template: Annotated[
        Path | None, typer.Option(help="File with a Jinja chat template that replaces the tokenizer's.")
    ] = None,
    threads: Threads = 0,
) -> None:
    """Talk with a model: a line is a message, /help lists commands, Ctrl-C stops an answer, Ctrl-D ends."""
    from ava_core.cli.decoding_settings import changed, choose
    from ava_core.errors import ConfigError
    from ava_core.generation import conversation_file
    from ava_core.runtime import logs

    logs.configure("warning")
    chosen, config = choose(strategy, {}, use)
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: must be KEY=VALUE, as temperature=0.7")
        config = changed(config, name, value)
    if chosen == "beam":
        raise ConfigError("--strategy beam: goes back on its words, and an answer is shown as it comes: choose another")
    require_weights(model, weights)
    template = _template(chat_template) if chat_template else None
    saved = conversation_file.read(load) if load else None

    # Only now, because PyTorch takes seconds to import: a wrong flag is refused at once.
    from ava_core.cli.dialogue import Dialogue, edit_lines
    from ava_core.generation.answers import NO_TEMPLATE
    from ava_core.generation.conversation import Conversation
    from ava_core.generation.loading import load_model

    loaded, tokenizer = load_model(model_folder(model, weights), threads)
    talk = Conversation(loaded, tokenizer, template, chosen, config, seed, system)
    if saved:
        talk.system, talk.messages = system or saved["system"], saved["messages"]
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not talk.trained:
        print(NO_TEMPLATE, file=sys.stderr)
    if terminal:
        edit_lines()
        print(f"{model}: /help lists commands, Ctrl-C stops an answer, Ctrl-D ends", file=sys.stderr)
    dialogue = Dialogue(talk, terminal=terminal)
    dialogue.run()
    if dialogue.failed and not terminal:
        raise typer.Exit(1)


def _template(path: Path) -> str:
    from ava_core.errors import ConfigError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {path}: can't be read ({error})") from error
