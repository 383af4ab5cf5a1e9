"""Rows in the shapes that data sets have, and rows that hold no conversation."""

import pytest

from ava_core.alignment.conversation import Message, RowFault, checked
from ava_core.alignment.shapes import SHAPES, read_row, shape_of

ASKED, ANSWERED = Message("user", "Who's there?"), Message("assistant", "Nay, answer me.")
ROWS = {
    "messages": {
        "messages": [{"role": "user", "content": ASKED.content}, {"role": "assistant", "content": ANSWERED.content}]
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": ASKED.content}, {"from": "gpt", "value": ANSWERED.content}]
    },
    "alpaca": {"instruction": ASKED.content, "input": "", "output": ANSWERED.content},
    "completion": {"prompt": ASKED.content, "completion": ANSWERED.content},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_messages(shape):
    assert read_row(ROWS[shape], shape) == [ASKED, ANSWERED]
    assert shape_of(ROWS[shape]) == shape


def test_input_of_an_instruction_follows_it():
    [asked, _] = read_row({"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}, "alpaca")
    assert asked.content == "Translate.\n\nGuten Tag"


def test_prompt_and_completion_may_be_messages():
    row = {
        "prompt": [{"role": "system", "content": "BERNARDO"}, {"role": "user", "content": ASKED.content}],
        "completion": [{"role": "assistant", "content": ANSWERED.content}],
    }
    assert read_row(row, "completion") == [Message("system", "BERNARDO"), ASKED, ANSWERED]


def test_fields_of_no_shape_are_told_apart():
    assert shape_of({"text": "a", "prompt": "b"}) is None


@pytest.mark.parametrize(
    ("row", "shape", "said"),
    [
        ({"messages": "hello"}, "messages", "messages: is str, not a list of messages"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages", "message 1: content: is int, not text"),
        ({"messages": ["hello"]}, "messages", "message 1: role: is NoneType, not text"),
        ({"conversations": [{"from": "bing", "value": "a"}]}, "sharegpt", "message 1: from = 'bing': must be one of"),
        ({"instruction": "a", "output": None}, "alpaca", "output: is missing; the row has instruction"),
        ({"instruction": "a", "output": 7}, "alpaca", "output: is int, not text"),
        ({"prompt": "a", "completion": ["b"]}, "completion", "completion: is list, not text"),
    ],
)
def test_faulty_row_names_field_and_fault(row, shape, said):
    with pytest.raises(RowFault) as caught:
        read_row(row, shape)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ("", "there is no turn"),
        ("s", "there is no turn"),
        ("a", "message 1: role = assistant: must be user"),
        ("uu", "message 2: role = user: must be assistant"),
        ("uaa", "message 3: role = assistant: must be user"),
        ("sus", "message 3: role = system: must be assistant"),
        ("uau", "message 3: role = user: the last message must be the assistant's"),
    ],
)
def test_turns_that_do_not_alternate_are_refused(roles, said):
    names = {"s": "system", "u": "user", "a": "assistant"}
    with pytest.raises(RowFault, match=said):
        checked("row", [Message(names[role], "word") for role in roles])


@pytest.mark.parametrize("empty", ["", " \n"])
def test_empty_answer_is_refused(empty):
    with pytest.raises(RowFault, match="message 2: content: the assistant's message is empty"):
        checked("row", [ASKED, Message("assistant", empty)])


def test_unknown_role_is_refused():
    with pytest.raises(RowFault, match="message 1: role = 'tool': must be one of system, user, assistant"):
        checked("row", [Message("tool", "a"), ANSWERED])
