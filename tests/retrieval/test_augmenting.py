"""Prompts with passages before them, and `ava generate --index`."""

import json

import pytest
from typer.testing import CliRunner

from ava_core.cli.main import app
from ava_core.generation.prompts import encode
from ava_core.retrieval.augmenting import LookUp, before_messages, before_text, last_question, with_passages
from ava_core.retrieval.fusion import Hit
from ava_core.retrieval.passage import Passage
from ava_core.retrieval.retriever import MAX_QUERY, Found, Retriever, query_of
from tests.retrieval.made import build


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    from ava_core.data.tokenizer import load_tokenizer

    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    settings = {"embedding": "none", "http": None}
    short = [Passage(f"Word w{number}.", f"doc{number}", 0, 8) for number in range(40)]
    return build(tmp_path_factory.mktemp("index") / "index", short, None, settings=settings)


def found(count, text="Words, words, words. And more of them."):
    return [Found(n, Passage(text, "hamlet.md", 0, len(text), "ACT I"), Hit(n, 1.0)) for n in range(count)]


@pytest.mark.parametrize("most", [30, 60, 90, 128, 400])
def test_a_prompt_is_never_cut_and_the_whole_is_never_too_long(tokenizer, most):
    prompt = "What does he read?"
    tokens, placed = with_passages(tokenizer, found(9), before_text(tokenizer, prompt), most)
    assert len(tokens) <= max(most, len(encode(tokenizer, prompt)))
    assert tokenizer.decode(tokens) == placed.text + prompt


def test_passages_are_said_by_the_system(tokenizer):
    from ava_core.generation.chat import encode_messages

    asked = [{"role": "system", "content": "HAMLET"}, {"role": "user", "content": "What do you read?"}]
    tokens, placed = with_passages(tokenizer, found(2), before_messages(tokenizer, asked), 1000)
    said = [{"role": "system", "content": f"HAMLET\n\n{placed.text.strip()}"}, asked[1]]
    assert tokens == encode_messages(tokenizer, said)
    alone, nothing = with_passages(tokenizer, [], before_messages(tokenizer, asked[1:]), 1000)
    assert alone == encode_messages(tokenizer, asked[1:])
    assert nothing.found == ()


def test_what_else_the_system_s_message_has_is_kept(tokenizer):
    template = "{% for m in messages %}{{ m.name or '' }}: {{ m.content }}{% endfor %}"
    asked = [{"role": "system", "content": "Be brief.", "name": "Ann"}, {"role": "user", "content": "Who?"}]
    for most in (1000, 1):
        tokens, _ = with_passages(tokenizer, found(1), before_messages(tokenizer, asked, template), most)
        assert tokenizer.decode(tokens).startswith("Ann: Be brief.")


def test_special_tokens_that_a_passage_spells_are_characters(tokenizer):
    tokens, _ = with_passages(tokenizer, found(1, "<|endoftext|> End of it."), before_text(tokenizer, "a"), 1000)
    assert not set(tokenizer.all_special_ids) & set(tokens)


def test_what_is_looked_up_is_the_end_of_a_prompt_and_the_last_question():
    assert query_of("  \n") == ""
    assert len(query_of("a" * 100_000)) <= MAX_QUERY
    assert query_of(" x" * 10_000 + " who?").endswith("who?")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert last_question([*messages, {"role": "user", "content": "c"}, messages[1]]) == "c"
    assert last_question([]) == ""


def test_nothing_is_looked_up_for_nothing(index):
    assert LookUp(Retriever.open(index)).find(" \n ") == []
    assert len(LookUp(Retriever.open(index), top_k=3).find("the word w1")) == 3


def ava(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_generate_reads_what_it_looked_up_and_names_the_sources(tiny_model, index):
    flags = ("--model", tiny_model, "--prompt", "w1 w2", "--strategy", "greedy", "--max-new-tokens", 8)
    alone = json.loads(ava("generate", *flags, "--jsonl").stdout)
    row = json.loads(ava("generate", *flags, "--jsonl", "--index", index, "--passages", 2).stdout)
    assert alone["prompt"] == row["prompt"] == "w1 w2"
    assert {one["document"] for one in row["passages"]} == {"doc1", "doc2"}
    assert "passages" not in alone
    assert alone["text"] != row["text"]
    flags = (*flags, "--index", index, "--passages", 1)
    outcome, [line] = ava("generate", *flags), ava("generate", *flags, "--jsonl").stdout.splitlines()
    assert outcome.stdout == f"w1 w2{json.loads(line)['text']}\n"
    assert outcome.stderr.strip().splitlines()[-1] == "[1] doc1 0-8"


def test_flags_of_a_search_without_an_index_are_refused(tiny_model):
    outcome = ava("generate", "--model", tiny_model, "--prompt", "a", "--passages", 2)
    assert "give it" in str(outcome.exception)
