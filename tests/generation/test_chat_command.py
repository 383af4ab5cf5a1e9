"""`ava chat` line by line, through a pipe and on a terminal."""

import io
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from ava_core.cli import main
from ava_core.cli.dialogue import Dialogue
from ava_core.config.generation import GenerationConfig
from ava_core.errors import ConfigError
from ava_core.generation.conversation import Conversation
from ava_core.interruption import Interrupted


@pytest.fixture
def chat(make_model, padded_tokenizer, monkeypatch, capsys):
    """Give lines; returns what came on standard output and standard error, and the dialogue."""
    model = make_model(vocab_size=260, num_layers=1, max_position_embeddings=128)

    def run(*lines):
        talk = Conversation(model, padded_tokenizer, settings=GenerationConfig(max_new_tokens=6))
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        dialogue = Dialogue(talk, terminal=False)
        dialogue.run()
        return *capsys.readouterr(), dialogue

    return run


def test_each_line_is_a_message_and_standard_output_holds_answers_alone(chat):
    out, err, dialogue = chat("Who?", "", "/history", "//usr is a folder", "one \\", "message")
    said = [message["content"] for message in dialogue.talk.messages]
    assert said[::2] == ["Who?", "/usr is a folder", "one \nmessage"]
    assert out.replace("\n", "").replace(" ", "") == "".join(said[1::2]).replace("\n", "").replace(" ", "")
    assert "user: Who?" in err and "cut at 6 tokens: /set max_new_tokens allows more" in err
    assert not dialogue.failed


def test_commands_change_the_talk(chat, tmp_path):
    file = tmp_path / "talk.json"
    _, err, dialogue = chat(
        "/system Be brief.",
        "/set temperature 0.5",
        "/set strategy greedy",
        "/set seed 5",
        "/set stop [a, b]",
        "Who?",
        f"/save {file}",
        "/undo",
        "/reset",
        f"/load {file}",
        "/set",
        "/help",
        "/exit",
        "never said",
    )
    talk = dialogue.talk
    assert (talk.system, talk.strategy, talk.seed) == ("Be brief.", "greedy", 6)
    assert (talk.settings.temperature, talk.settings.stop) == (0.5, ["a", "b"])
    assert [message["content"] for message in talk.messages[::2]] == ["Who?"]
    assert "taken back: Who?" in err and "2 messages" in err
    assert "temperature = 0.5" in err and "/regenerate" in err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/sav x", "/sav: is no command: did you mean /save?"),
        ("/set temperature 0", "temperature = 0: input should be greater than or equal to 0.000001"),
        ("/set temperatur 1", "temperatur: is no setting of decoding: did you mean temperature?"),
        ("/set num_beam_groups 3", "num_beam_groups = 3: must divide num_beams = 4"),
        ("/set temperature", "/set temperature: needs a value"),
        ("/set seed x", "seed = x: must be a whole number"),
        ("/set strategy beam", "strategy beam: goes back on its words"),
        ("/set strategy best", "strategy best: must be one of"),
        ("/load nowhere", "nowhere: No such file or directory"),
        ("/save", "/save: needs a file"),
        ("/undo", "there is nothing to take back"),
        ("/regenerate", "there is nothing to take back"),
        ("b" * 300, "the model's context of 128 has room for"),
    ],
)
def test_fault_is_a_line_and_the_talk_goes_on(chat, line, says):
    _, err, dialogue = chat(line, "Who?")
    assert says in err.splitlines()[0]
    assert [message["content"] for message in dialogue.talk.messages[::2]] == ["Who?"]
    assert dialogue.failed


def test_control_c_at_a_terminal_stops_the_answer_and_not_the_program(
    make_model, padded_tokenizer, monkeypatch, capsys
):
    model = make_model(vocab_size=260, num_layers=1)
    talk = Conversation(model, padded_tokenizer, settings=GenerationConfig(max_new_tokens=50))
    dialogue = Dialogue(talk, terminal=True)
    lines = iter(["Who?", Interrupted(signal.SIGINT), "/history", EOFError()])

    def read(prompt):
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    shown = []

    def show(text):
        shown.append(text)
        if len(shown) == 3:
            raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(dialogue, "_show", show)
    dialogue.run()
    err = capsys.readouterr().err
    assert "stopped: what was said stays" in err and "/exit or Ctrl-D ends" in err
    assert "user: Who?" in err


def test_termination_ends_the_program_even_at_a_terminal(make_model, padded_tokenizer, monkeypatch):
    dialogue = Dialogue(Conversation(make_model(vocab_size=260), padded_tokenizer), terminal=True)
    monkeypatch.setattr("builtins.input", lambda prompt: (_ for _ in ()).throw(Interrupted(signal.SIGTERM)))
    with pytest.raises(Interrupted):
        dialogue.run()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--strategy", "beam"], "--strategy beam: goes back on its words"),
        (["--set", "temperature"], "--set temperature: must be KEY=VALUE"),
        (["--set", "temperature=x"], "temperature = x: input should be a valid number"),
        (["--for", "prose"], "--for prose: must be one of dialogue, code, verse"),
        (["--weights", "int8"], "--weights int8: chooses among those of a registered model"),
        (["--load", "nowhere.json"], "nowhere.json: No such file or directory"),
        (["--chat-template", "nowhere"], "--chat-template nowhere: can't be read"),
    ],
)
def test_wrong_flag_is_refused_before_the_model_is_looked_at(arguments, says):
    result = CliRunner().invoke(main.app, ["chat", "--model", "nowhere", *arguments])
    assert isinstance(result.exception, ConfigError) and says in str(result.exception)


@pytest.mark.slow
def test_talk_on_a_terminal(tiny_model):
    """A real terminal: the prompt, an answer that comes in pieces, Ctrl-C in it, and the end of input."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "ava_core.cli.main", "chat", "--model", tiny_model, "--set", "max_new_tokens=110"]
    process = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=subprocess.PIPE, start_new_session=True, text=False
    )
    os.close(child)

    def wait_for(text):
        seen = b""
        deadline = time.monotonic() + 240
        while text not in seen and time.monotonic() < deadline:
            seen += os.read(parent, 4096)
        return seen

    try:
        wait_for(b"> ")
        os.write(parent, b"To be\n")
        wait_for(b"To be\r\n")
        os.read(parent, 1)
        process.send_signal(signal.SIGINT)
        wait_for(b"> ")
        os.write(parent, b"\x04")
        assert process.wait(120) == 0
        err = process.stderr.read().decode()
        assert "Ctrl-C stops an answer" in err and "no chat template" in err and "Traceback" not in err
    finally:
        process.kill()
        os.close(parent)
