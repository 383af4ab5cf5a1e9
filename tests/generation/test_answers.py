"""`ava generate --chat`: prompts are messages, and what is printed are the answers alone."""

import json
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from ava_core.cli import generate as command
from ava_core.config.generation import GenerationConfig
from ava_core.errors import AvaError, ConfigError
from ava_core.generation import answers as library
from ava_core.generation import loading
from ava_core.generation.answers import NO_TEMPLATE, answers, turn_ends
from ava_core.generation.chat import EndOfTurn
from ava_core.generation.conversation import Conversation

QUESTIONS = ["Who?", "Where is the king?", ""]
SETTINGS = GenerationConfig(max_new_tokens=10, top_p=1.0)

app = typer.Typer()
app.command()(command.generate)


def ava(*arguments):
    return CliRunner().invoke(app, ["--model", "there", *map(str, arguments)])


@pytest.fixture
def folder(either_model, chat_tokenizer, monkeypatch):
    """What the command loads, from a folder that needn't be there."""
    given = SimpleNamespace(model=either_model, tokenizer=chat_tokenizer)
    monkeypatch.setattr(loading, "load_model", lambda folder, threads: (given.model, given.tokenizer))
    return given


@pytest.mark.parametrize("strategy", ["greedy", "nucleus", "contrastive"])
def test_answer_is_the_one_that_a_conversation_begins_with(either_model, chat_tokenizer, strategy):
    found = answers(
        either_model, chat_tokenizer, QUESTIONS, system="Be brief.", strategy=strategy, settings=SETTINGS, seed=3
    )
    for question, answer in zip(QUESTIONS, found, strict=True):
        talk = Conversation(either_model, chat_tokenizer, None, strategy, SETTINGS, 3, "Be brief.")
        assert answer.rstrip() == talk.say(question, show=lambda text: None).text


def test_command_prints_the_answers_alone_in_each_form(folder):
    options = ["--chat", "--system", "Be brief.", "--max-new-tokens", 10, "--seed", 3, "--top-p", 1]
    prompts = [part for question in QUESTIONS for part in ("--prompt", question)]
    expected = answers(
        folder.model,
        folder.tokenizer,
        QUESTIONS,
        system="Be brief.",
        strategy="nucleus",
        settings=SETTINGS,
        seed=3,
    )
    plain, lines = ava(*prompts, *options), ava(*prompts, *options, "--jsonl")
    assert plain.stdout == "\n---\n".join(expected) + "\n" and not plain.stderr
    assert [json.loads(line) for line in lines.stdout.split("\n")[:-1]] == [
        {"prompt": question, "text": answer} for question, answer in zip(QUESTIONS, expected, strict=True)
    ]
    assert ava("--prompt", "Who?", *options, "--stream").stdout == expected[0] + "\n"


def test_turn_ends_with_the_template_s_token_and_with_those_of_the_model_s_generation_config(
    byte_model, chat_tokenizer, monkeypatch
):
    monkeypatch.setattr(byte_model.generation_config, "eos_token_id", [256, 258, 65])
    assert turn_ends(byte_model, chat_tokenizer) == EndOfTurn((258, 65), "")
    for end in (258, 65):

        def only_the_end(module, args, output, end=end):
            output[..., end] = 100.0
            return output

        handle = byte_model.lm_head.register_forward_hook(only_the_end)
        talk = Conversation(byte_model, chat_tokenizer, settings=SETTINGS)
        [found] = answers(byte_model, chat_tokenizer, ["Who?"], strategy="greedy", settings=SETTINGS, seed=0)
        answer = talk.say("Who?", show=lambda text: None)
        handle.remove()
        assert found == answer.text == ("" if end == 258 else "A") and not answer.cut


def test_model_without_a_template_is_told_apart_and_stops_before_it_speaks_for_the_user(folder, padded_tokenizer):
    folder.tokenizer = padded_tokenizer
    found = ava("--chat", "--prompt", "Who?", "--max-new-tokens", 3)
    assert found.exit_code == 0 and found.stderr == NO_TEMPLATE + "\n"
    asked = []
    real = library.continue_prompts

    def continue_prompts(model, tokenizer, prompts, token_ids, **options):
        asked.append((tokenizer.decode(token_ids[0]), options["settings"].stop))
        return real(model, tokenizer, prompts, token_ids, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "continue_prompts", continue_prompts)
        ava("--chat", "--prompt", "Who?", "--max-new-tokens", 3, "--stop", "x")
    assert asked == [("user: Who?\n\nassistant:", ["x", "\n\nuser:"])]


def test_constraint_holds_for_an_answer(folder, padded_tokenizer):
    for tokenizer in (folder.tokenizer, padded_tokenizer):
        folder.tokenizer = tokenizer
        found = ava("--chat", "--prompt", "Who?", "--regex", "[ab]{5}", "--num-return-sequences", 2)
        assert found.exit_code == 0, found.output
        texts = found.stdout.rstrip("\n").split("\n---\n")
        assert len(texts) == 2 and all(len(text) == 5 and set(text) <= {"a", "b"} for text in texts)


def test_faults_are_one_line(folder, monkeypatch):
    without_chat = ava("--prompt", "Who?", "--system", "Be brief.")
    assert str(without_chat.exception) == "--system: stands before the message of a chat: give --chat as well"
    assert isinstance(without_chat.exception, ConfigError)
    wrong = ava("--chat", "--prompt", "Who?", "--system", "caf\udce9")
    assert "isn't valid UTF-8 at character 3" in str(wrong.exception)
    folder.tokenizer.chat_template = "{{ raise_exception('no system prompts') }}"
    refused = ava("--chat", "--prompt", "Who?")
    assert isinstance(refused.exception, AvaError)
    assert str(refused.exception) == "the chat template refuses the messages: no system prompts"
