"""`ava generate` as a person runs it."""

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from ava_core.cli import generate as command
from ava_core.cli.decoding_settings import fitting
from ava_core.config.generation import GenerationConfig
from ava_core.errors import ConfigError
from ava_core.generation.decoding import generate
from ava_core.generation.loading import load_model
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
        ("--temperature", "0", "--temperature 0.0: input should be greater than or equal to 0.000001"),
        ("--top-p", "1.5", "--top-p 1.5: input should be less than or equal to 1"),
        (
            "--strategy",
            "best",
            "strategy best: must be one of greedy, beam, contrastive, nucleus, top-k, min-p, typical",
        ),
        ("--typical-p", "1.5", "--typical-p 1.5: input should be less than or equal to 1"),
        ("--min-new-tokens", "65", "--min-new-tokens 65: must be <= --max-new-tokens 64"),
        ("--num-beam-groups", "3", "--num-beam-groups 3: must divide --num-beams 4"),
        ("--num-beam-groups", "2", "--num-beam-groups 2: is read by beam only: --strategy is nucleus"),
        ("--length-penalty", "2", "--length-penalty 2.0: is read by beam only: --strategy is nucleus"),
        ("--contrastive", "2", "--contrastive 2.0: input should be less than or equal to 1"),
        ("--regex", "a(", "--regex a(: unclosed group"),
        ("--json-schema", "none.json", "--json-schema none.json: No such file or directory"),
        ("--json-schema", '{"type": 5}', '--json-schema {"type": 5}: type must be a string or array of strings'),
    ],
)
def test_wrong_value_is_refused_before_the_model_is_looked_at(flag, value, message):
    result = ava("--model", "nowhere", "--prompt", "O", flag, value)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--strategy", "beam", "--contrastive", "0.6"],
            "--contrastive 0.6: is read by contrastive only: --strategy is beam",
        ),
        (["--regex", "a", "--json-schema", "{}"], "--regex: can't stand beside --json-schema: give one of them"),
        (["--regex", "a", "--stop", "b"], "stop = ['b']: can't stand beside a constraint"),
        (["--strategy", "greedy", "--num-return-sequences", "2"], "--num-return-sequences 2: greedy finds one text"),
        (["--stream", "--num-return-sequences", "2"], "--stream: needs one prompt and a strategy other than beam"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments, message):
    result = ava("--model", "nowhere", "--prompt", "O", *arguments)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_schema_of_a_file_holds_for_each_of_several_texts(tiny_model, tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(
        '{"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}, "required": ["age"]}'
    )
    options = ["--json-schema", path, "--num-return-sequences", 3, "--max-new-tokens", 90, "--temperature", 0.1]
    result = ava("--model", tiny_model, "--prompt", "O", "--jsonl", *options)
    assert result.exit_code == 0, result.output
    texts = [json.loads(line)["text"] for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(texts) == 3 and all(text.replace(" ", "").startswith('{"age":') for text in texts)


def test_contrastive_flag_chooses_the_strategy(tiny_model):
    options = ["--model", tiny_model, "--prompt", "To be, or", "--max-new-tokens", 6]
    result = ava(*options, "--contrastive", 0.7, "--top-k", 5)
    settings = GenerationConfig(max_new_tokens=6, penalty_alpha=0.7, top_k=5)
    [text] = generate(*load_model(tiny_model), ["To be, or"], strategy="contrastive", settings=settings, seed=0)
    assert result.stdout == text + "\n"


def test_preset_leaves_a_prompt_half_of_a_small_context_and_a_flag_wins(tiny_model):
    """Of 128 tokens; the preset asks for 256."""
    options = ["--model", tiny_model, "--prompt", "To be, or", "--for", "code"]
    found = ava(*options)
    assert found.exit_code == 0, found.output
    settings = GenerationConfig(temperature=0.2, top_p=0.95, max_new_tokens=64)
    [text] = generate(*load_model(tiny_model), ["To be, or"], strategy="nucleus", settings=settings, seed=1337)
    assert found.stdout == text + "\n"
    assert "max_new_tokens = 256 are more than the model's context" in str(
        ava(*options, "--max-new-tokens", 256).exception
    )
    most = fitting(GenerationConfig(max_new_tokens=256, min_new_tokens=100), 128).max_new_tokens
    assert most == 100, "what was asked for at least stays"


def test_registered_model_is_fetched_into_the_cache(tiny_model, monkeypatch):
    asked = []

    def download(uri, tracking_uri, cache, weights):
        asked.append((uri, tracking_uri, str(cache), weights))
        return Downloaded(tiny_model, 1, created=0)

    monkeypatch.setenv("AVA_TRACKING_URI", "sqlite:///there.db")
    monkeypatch.setattr("ava_core.registry.download_model", download)
    for weights in ([], ["--weights", "int8"], ["--chat"]):
        result = ava("--model", "models:/ava-moe@champion", "--prompt", "O", "--max-new-tokens", 2, *weights)
        assert result.exit_code == 0, result.output
    registered = ("models:/ava-moe@champion", "sqlite:///there.db", ".ava/models")
    assert asked == [(*registered, "model"), (*registered, "int8"), (*registered, "model")]


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("models:/ava-moe@champion", "int2", "--weights int2: must be one of float, auto, int4, int8, fp32"),
        ("out/model", "int8", "--weights int8: chooses among those of a registered model: out/model holds its own"),
    ],
)
def test_weights_that_can_not_be_chosen_are_refused(model, weights, message):
    result = ava("--model", model, "--prompt", "O", "--weights", weights)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == message


def test_missing_model_ends_in_one_line_and_exit_code_1(tmp_path):
    run = [sys.executable, "-m", "ava_core.cli.main", "generate", "--model", tmp_path / "nowhere", "--prompt", "O"]
    result = subprocess.run(run, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "no such folder: give a model folder, as `ava train` or `ava import`" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_prompts_of_a_file_give_what_each_gives_alone(tiny_model, tmp_path):
    path = tmp_path / "prompts"
    path.write_text('To be, or\n\n{"prompt": "O"}\n')
    options = ["--model", tiny_model, "--max-new-tokens", 6, "--seed", 4, "--jsonl"]
    together = ava("--prompts-file", path, *options)
    alone = [ava("--prompt", prompt, *options).stdout for prompt in ("To be, or", "O")]
    assert together.stdout == "".join(alone)
    assert json.loads(alone[1])["prompt"] == "O"


def test_lines_of_a_file_end_at_line_feeds_alone(tiny_model, tmp_path):
    path = tmp_path / "prompts"
    path.write_bytes(b'\xef\xbb\xbfTo be\x0cor\r\n{"prompt": "O\xe2\x80\xa8she"}')
    result = ava("--prompts-file", path, "--model", tiny_model, "--max-new-tokens", 1, "--jsonl")
    lines = result.stdout.rstrip("\n").split("\n")
    assert [json.loads(line)["prompt"] for line in lines] == ["To be\x0cor", "O\u2028she"]


def test_stream_prints_the_text_that_comes_without(tiny_model):
    options = ["--model", tiny_model, "--prompt", "To be, or", "--max-new-tokens", 9]
    assert ava(*options, "--stream").stdout == ava(*options).stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"To be\n\xff\n", "prompts: isn't valid UTF-8 at byte 6"),
        (b'{"text": "O"}', 'line 1: starts like JSON: must be {"prompt": "..."}'),
        (b'O\n{"prompt": 3}', "line 2: prompt = 3: must be a string"),
        (b'{"prompt": ' + b"[" * 100_000, "line 1: starts like JSON"),
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
def test_what_can_not_be_streamed_is_refused_before_anything_is_printed(arguments):
    result = ava("--model", "nowhere", "--prompt", "To be, or", "--stream", *arguments)
    assert isinstance(result.exception, ConfigError)
    assert "--stream: needs one prompt and a strategy other than beam" in str(result.exception)
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "caf\udce9"], r"prompt 'caf\udce9': isn't valid UTF-8 at character 3"),
        (["--prompt", "O", "--stop", "caf\udce9"], r"--stop caf\udce9: input should be a valid string"),
    ],
)
def test_text_in_another_encoding_is_refused_before_the_model_is_looked_at(arguments, message):
    result = ava("--model", "nowhere", *arguments)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


@pytest.mark.slow
def test_interrupted_command_exits_130_without_a_traceback(tiny_model):
    code = (
        "import os, signal\n"
        "from ava_core.cli import main\n"
        "from ava_core.generation import decoding\n"
        "decoding.Decoder.decode = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "main.main()\n"
    )
    run = [sys.executable, "-c", code, "generate", "--model", tiny_model, "--prompt", "O", "--stream"]
    result = subprocess.run(run, capture_output=True, text=True, timeout=280)
    assert result.returncode == 130
    assert result.stderr == "ava: interrupted: run the same command again to go on\n"
