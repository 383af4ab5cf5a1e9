"""`ava generate` as a person runs it."""

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from ava_core.cli import generate as command
from ava_core.config.schema import GenerationConfig
from ava_core.errors import ConfigError
from ava_core.generation import generate, load_model
from ava_core.registry.download import Downloaded

app = typer.Typer()
app.command()(command.generate)


def ava(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_texts_are_those_of_the_library_with_a_line_of_dashes_between(tiny_model):
    result = ava("--model", tiny_model, "--prompt", "To be, or", "--prompt", "O", "--max-new-tokens", 6, "--seed", 4)
    assert result.exit_code == 0, result.output
    settings = GenerationConfig(max_new_tokens=6)
    texts = generate(*load_model(tiny_model), ["To be, or", "O"], strategy="nucleus", settings=settings, seed=4)
    assert result.stdout == "\n---\n".join(texts) + "\n"


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
def test_strategy_is_obeyed(tiny_model, strategy):
    options = ["--strategy", strategy, "--max-new-tokens", 6, "--num-beams", 3]
    result = ava("--model", tiny_model, "--prompt", "To be, or", *options)
    settings = GenerationConfig(max_new_tokens=6, num_beams=3)
    [text] = generate(*load_model(tiny_model), ["To be, or"], strategy=strategy, settings=settings, seed=0)
    assert result.stdout == text + "\n"


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--temperature", "0", "--temperature 0.0: input should be greater than 0"),
        ("--top-p", "1.5", "--top-p 1.5: input should be less than or equal to 1"),
        ("--strategy", "best", "strategy best: must be one of greedy, beam, nucleus, top-k, min-p"),
    ],
)
def test_wrong_value_is_refused_before_the_model_is_looked_at(flag, value, message):
    result = ava("--model", "nowhere", "--prompt", "O", flag, value)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == message


def test_registered_model_is_fetched_into_the_cache(tiny_model, monkeypatch):
    asked = []

    def download(uri, tracking_uri, cache):
        asked.append((uri, tracking_uri, str(cache)))
        return Downloaded(tiny_model, 1)

    monkeypatch.setenv("AVA_TRACKING_URI", "sqlite:///there.db")
    monkeypatch.setattr("ava_core.registry.download_model", download)
    result = ava("--model", "models:/ava-moe@champion", "--prompt", "O", "--max-new-tokens", 2)
    assert result.exit_code == 0, result.output
    assert asked == [("models:/ava-moe@champion", "sqlite:///there.db", ".ava/models")]


def test_missing_model_ends_in_one_line_and_exit_code_1(tmp_path):
    run = [sys.executable, "-m", "ava_core.cli.main", "generate", "--model", tmp_path / "nowhere", "--prompt", "O"]
    result = subprocess.run(run, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].endswith(
        "no such folder: give the output folder of `ava train` or `ava quantize`"
    )
    assert "Traceback" not in result.stderr


def test_prompts_of_a_file_give_what_each_gives_alone(tiny_model, tmp_path):
    path = tmp_path / "prompts"
    path.write_text('To be, or\n\n{"prompt": "O"}\n')
    options = ["--model", tiny_model, "--max-new-tokens", 6, "--seed", 4, "--jsonl"]
    together = ava("--prompts-file", path, *options)
    alone = [ava("--prompt", prompt, *options).stdout for prompt in ("To be, or", "O")]
    assert together.stdout == "".join(alone)
    assert json.loads(alone[1])["prompt"] == "O"


def test_stream_prints_the_text_that_comes_without(tiny_model):
    options = ["--model", tiny_model, "--prompt", "To be, or", "--max-new-tokens", 9]
    assert ava(*options, "--stream").stdout == ava(*options).stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"To be\n\xff\n", "prompts: isn't valid UTF-8 at byte 6"),
        (b'{"text": "O"}', 'line 1: starts like JSON: must be {"prompt": "..."}'),
        (b"\n", "no prompt: give --prompt or --prompts-file"),
    ],
)
def test_file_that_holds_no_prompts_is_refused(tmp_path, content, message):
    path = tmp_path / "prompts"
    path.write_bytes(content)
    result = ava("--model", "nowhere", "--prompts-file", path)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


@pytest.mark.parametrize("arguments", [["--prompt", "O"], ["--strategy", "beam"]])
def test_what_can_not_be_streamed_is_refused(tiny_model, arguments):
    result = ava("--model", tiny_model, "--prompt", "To be, or", "--stream", *arguments)
    assert isinstance(result.exception, ConfigError)
    assert "--stream: needs one prompt and a strategy other than beam" in str(result.exception)


def test_prompt_in_another_encoding_is_refused(tiny_model):
    result = ava("--model", tiny_model, "--prompt", "caf\udce9")
    assert "isn't valid UTF-8 at character 3" in str(result.exception)
