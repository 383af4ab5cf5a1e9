"""Conversations: what the model sees, what is kept, and where an answer ends."""

import copy
import json

import pytest
from tokenizers import AddedToken

from ava_core.config.generation import GenerationConfig
from ava_core.errors import AvaError, ConfigError
from ava_core.generation import conversation, conversation_file
from ava_core.generation.chat import EndOfTurn, end_of_turn
from ava_core.generation.conversation import Conversation
from ava_core.interruption import Interrupted

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end_of_turn|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def talk(make_model, padded_tokenizer):
    model = make_model(vocab_size=260, num_layers=1, max_position_embeddings=128)
    return Conversation(model, padded_tokenizer, settings=GenerationConfig(max_new_tokens=8, top_p=1.0))


@pytest.fixture
def seen(monkeypatch):
    """The texts that the model is given."""
    real, texts = conversation.continue_tokens, []

    def continue_tokens(model, tokenizer, ids, **options):
        texts.append(tokenizer.decode(ids))
        return real(model, tokenizer, ids, **options)

    monkeypatch.setattr(conversation, "continue_tokens", continue_tokens)
    return texts


def test_model_sees_system_prompt_and_all_turns(talk, seen):
    talk.system = "Be brief."
    first = talk.say("Who?", show=lambda text: None)
    talk.say("Where?", show=lambda text: None)
    assert seen == [
        "system: Be brief.\n\nuser: Who?\n\nassistant:",
        f"system: Be brief.\n\nuser: Who?\n\nassistant: {first.text}\n\nuser: Where?\n\nassistant:",
    ]
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2


def test_shown_pieces_make_the_answer_and_the_same_seed_the_same_talk(talk):
    shown = []
    answers = [talk.say("Who?", show=shown.append).text]
    assert "".join(shown).rstrip() == answers[0]
    answers.append(talk.regenerate(show=shown.append).text)
    assert answers[0] != answers[1] and len(talk.messages) == 2
    talk.reset()
    talk.seed = 1337
    assert talk.say("Who?", show=shown.append).text == answers[0]


def test_oldest_turns_make_room_and_it_is_said(talk, seen):
    talk.system = "S" * 20
    dropped = [talk.say(letter * 30, show=lambda text: None).dropped for letter in "abc"]
    assert dropped == [0, 2, 2]
    assert seen[2].startswith("system: SSSS") and "a" * 30 not in seen[2] and "b" * 30 not in seen[2]
    assert len(talk.messages) == 6, "what the model doesn't see is still there to be saved"


def test_message_that_alone_is_too_long_is_refused_and_nothing_changes(talk):
    talk.say("a", show=lambda text: None)
    with pytest.raises(AvaError, match=r"message of \d+ tokens: the model's context of 128 has room for 120"):
        talk.say("b" * 200, show=lambda text: None)
    assert len(talk.messages) == 2


def test_interrupted_answer_keeps_what_was_shown(talk):
    shown = []

    def show(text):
        shown.append(text)
        if len(shown) == 3:
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        talk.say("Who?", show=show)
    assert talk.messages[-1] == {"role": "assistant", "content": "".join(shown).rstrip()}
    assert talk.undo() == "Who?" and talk.messages == []
    with pytest.raises(ConfigError, match="nothing to take back"):
        talk.undo()


def test_answer_that_a_limit_ends_is_cut_and_one_that_a_stop_string_ends_is_not(talk):
    cut = talk.say("Who?", show=lambda text: None)
    assert cut.cut and len(cut.text) >= 3
    talk.reset()
    talk.seed -= 1
    talk.settings = talk.settings.model_copy(update={"stop": [cut.text[1:3]]})
    stopped = talk.say("Who?", show=lambda text: None)
    assert not stopped.cut and stopped.text == cut.text[: cut.text.index(cut.text[1:3])].rstrip()


@pytest.mark.parametrize("strategy", ["greedy", "contrastive", "nucleus"])
def test_answer_ends_with_the_token_that_the_template_writes_after_one(talk, strategy, seen):
    tokenizer = talk.tokenizer = copy.deepcopy(talk.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|end_of_turn|>", special=True)]})
    end = tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    assert end_of_turn(tokenizer, CHATML) == EndOfTurn((end,), "")
    talk.template, talk.strategy = CHATML, strategy

    def only_the_end(module, args, output):
        output[..., end] = 100.0
        return output

    handle = talk.model.lm_head.register_forward_hook(only_the_end)
    answer = talk.say("Who?", show=lambda text: None)
    handle.remove()
    assert answer.text == "" and not answer.cut
    assert talk.trained


def test_base_model_is_stopped_where_it_would_speak_for_the_user(padded_tokenizer):
    assert end_of_turn(padded_tokenizer) == EndOfTurn((), "\n\nuser:")
    assert end_of_turn(padded_tokenizer, "{{ raise_exception('no') }}") == EndOfTurn((), "")


def test_conversation_comes_back_from_its_file(talk, tmp_path):
    talk.say("König?", show=lambda text: None)
    path = tmp_path / "talk.json"
    conversation_file.write(path, "Be brief.", talk.messages)
    conversation_file.write(path, "Be brief.", talk.messages)
    assert conversation_file.read(path) == {
        "format": "ava.conversation",
        "system": "Be brief.",
        "messages": talk.messages,
    }


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"\xff",
        b"[" * 9999,
        json.dumps(
            {"format": "ava.conversation", "system": "", "messages": [{"role": "user", "content": "a"}]}
        ).encode(),
        json.dumps({"format": "ava.conversation", "system": 1, "messages": []}).encode(),
    ],
)
def test_file_that_holds_anything_else_is_neither_read_nor_overwritten(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    for touch in (conversation_file.read, lambda path: conversation_file.write(path, "", [])):
        with pytest.raises(ConfigError, match="holds no conversation that /save wrote"):
            touch(path)
    assert path.read_bytes() == content
