"""`ava chat` line by line: what is typed is said, and what begins with a slash is a command.

Answers go to standard output, all else to standard error, so that a pipe holds answers alone.
"""

from __future__ import annotations

import contextlib
import difflib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.cli.decoding_settings import changed
from ava_core.errors import AvaError, ConfigError, one_line
from ava_core.generation import conversation_file
from ava_core.generation.strategies import require_strategy
from ava_core.interruption import Interrupted

if TYPE_CHECKING:
    from ava_core.generation.conversation import Conversation

PROMPT = "> "


class Dialogue:
    """Reads lines and answers them.

    Args:
        talk: the conversation.
        terminal: a person types: show a prompt, and go on after Ctrl-C.
    """

    def __init__(self, talk: Conversation, *, terminal: bool) -> None:
        self.talk, self.terminal = talk, terminal
        self.failed = False
        self._commands: dict[str, tuple[Callable[[str], None], str, str]] = {
            "help": (self._help, "", "list the commands"),
            "system": (self._system, "[TEXT]", "set the system prompt; without TEXT show it; - removes it"),
            "set": (self._set, "[KEY VALUE]", "change a setting of decoding, strategy or seed; without KEY show all"),
            "history": (self._history, "", "show the messages"),
            "undo": (self._undo, "", "take the last message and its answer back"),
            "regenerate": (self._regenerate, "", "another answer to the last message"),
            "reset": (self._reset, "", "forget all messages; the system prompt stays"),
            "save": (self._save, "FILE", "write system prompt and messages into a file"),
            "load": (self._load, "FILE", "go on with a saved conversation"),
            "exit": (self._exit, "", "end; so does the end of input (Ctrl-D)"),
        }

    def run(self) -> None:
        """Until the end of input, or /exit."""
        for line in self._lines():
            try:
                self._take(line)
            except _Exit:
                break
            except AvaError as error:
                self.failed = True
                for fault in str(error).splitlines():
                    self._note(fault)
        if self.terminal:
            self._note("")

    def _take(self, line: str) -> None:
        if not line.strip():
            return
        if not line.startswith("/") or line.startswith("//"):
            self._say(line.removeprefix("/"))
            return
        name, _, rest = line[1:].strip().partition(" ")
        name = "exit" if name in ("quit", "bye") else name
        if name not in self._commands:
            near = difflib.get_close_matches(name, self._commands, n=1)
            hint = f"did you mean /{near[0]}?" if near else "see /help"
            raise ConfigError(f"/{name}: is no command: {hint} (a message that begins with a slash begins with two)")
        self._commands[name][0](rest.strip())

    # Input

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                line = self._read()
                while line.endswith("\\"):  # goes on in the next line
                    line = line[:-1] + "\n" + self._read()
            except EOFError:
                return
            except Interrupted as error:
                if not self._goes_on(error):
                    raise
                self._note("\n/exit or Ctrl-D ends")
                continue
            yield line

    def _read(self) -> str:
        if self.terminal:
            return input(PROMPT)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def _goes_on(self, error: Interrupted) -> bool:
        return self.terminal and error.number == signal.SIGINT

    # Answers

    def _say(self, text: str) -> None:
        self._answered(lambda: self.talk.say(text, self._show))

    def _regenerate(self, _: str) -> None:
        self._answered(lambda: self.talk.regenerate(self._show))

    def _answered(self, ask: Callable) -> None:
        try:
            answer = ask()
        except Interrupted as error:
            if not self._goes_on(error):
                raise
            self._show("\n")
            self._note("stopped: what was said stays; /undo takes it back")
            return
        self._show("\n")
        if answer.dropped:
            context = self.talk.model.config.max_position_embeddings
            self._note(
                f"the {answer.dropped} oldest messages are beyond the model's context of {context} tokens: it doesn't"
                " see them any more"
            )
        if answer.cut:
            self._note(f"cut at {self.talk.settings.max_new_tokens} tokens: /set max_new_tokens allows more")

    def _show(self, text: str) -> None:
        print(text, end="", flush=True)

    def _note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    # Commands

    def _help(self, _: str) -> None:
        for name, (_run, argument, meaning) in self._commands.items():
            self._note(f"/{name} {argument}".ljust(22) + meaning)

    def _system(self, text: str) -> None:
        if text:
            self.talk.system = "" if text == "-" else text
        else:
            self._note(self.talk.system or "there is no system prompt")

    def _set(self, text: str) -> None:
        key, _, value = text.partition(" ")
        if not key:
            values = {"strategy": self.talk.strategy, "seed": self.talk.seed, **self.talk.settings.model_dump()}
            for name, shown in values.items():
                self._note(f"{name} = {shown}")
        elif not value:
            raise ConfigError(f"/set {key}: needs a value, as in /set temperature 0.7")
        else:
            self._change(key, value.strip())

    def _change(self, key: str, value: str) -> None:
        if key == "seed":
            if not value.isdecimal() or int(value) >= 2**32:
                raise ConfigError(f"seed = {value}: must be a whole number below 2^32")
            self.talk.seed = int(value)
        elif key == "strategy":
            require_strategy(value)
            if value == "beam":
                raise ConfigError("strategy beam: goes back on its words, and an answer is shown as it comes")
            self.talk.strategy = value
        else:
            self.talk.settings = changed(self.talk.settings, key, value)

    def _history(self, _: str) -> None:
        for message in self.talk.messages:
            self._note(f"{message['role']}: {message['content']}")

    def _undo(self, _: str) -> None:
        self._note(f"taken back: {one_line(self.talk.undo())}")

    def _reset(self, _: str) -> None:
        self.talk.reset()

    def _save(self, text: str) -> None:
        conversation_file.write(_path("save", text), self.talk.system, self.talk.messages)

    def _load(self, text: str) -> None:
        saved = conversation_file.read(_path("load", text))
        self.talk.reset()
        self.talk.system, self.talk.messages = saved["system"], saved["messages"]
        self._note(f"{len(self.talk.messages)} messages")

    def _exit(self, _: str) -> None:
        raise _Exit


class _Exit(Exception):
    """Asked for by /exit."""


def _path(command: str, text: str) -> Path:
    if not text:
        raise ConfigError(f"/{command}: needs a file")
    return Path(text).expanduser()


def edit_lines() -> None:
    """Let a person edit lines and get earlier ones back with the arrow keys, where Python was built with it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
