"""A conversation's cache: only what is new is read, and answers are those of a model that reads all."""

import pytest
import torch

from ava_core.config.generation import GenerationConfig
from ava_core.generation import conversation
from ava_core.generation.conversation import Conversation
from ava_core.generation.kept_cache import KeptCache
from ava_core.interruption import Interrupted

SETTINGS = GenerationConfig(max_new_tokens=6, top_p=1.0)


@pytest.fixture
def read(monkeypatch):
    """Positions that a model reads in each answer, and the tokens that each is asked to continue."""
    real, counts = conversation.continue_tokens, []

    def continue_tokens(model, tokenizer, ids, **options):
        positions = []
        forward = model.forward

        def counted(input_ids, **inputs):
            positions.append(input_ids.shape[1])
            return forward(input_ids=input_ids, **inputs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "forward", counted)
            try:
                return real(model, tokenizer, ids, **options)
            finally:
                counts.append((positions[0], len(ids), positions[1:]))

    monkeypatch.setattr(conversation, "continue_tokens", continue_tokens)
    return counts


@pytest.fixture(params=["torch", "fused", "portable"])
def any_model(request, make_model, export):
    """Of PyTorch, or exported in each way; a context of 400 bytes."""
    model = make_model(vocab_size=260, num_layers=2, max_position_embeddings=400)
    return model if request.param == "torch" else export(model, portable=request.param == "portable")


@pytest.fixture(params=["torch", "fused", "portable"])
def any_letters(request, make_model, export):
    """A model whose most probable tokens are small letters."""
    model = make_model(vocab_size=260, num_layers=2, max_position_embeddings=400)
    with torch.no_grad():
        others = [token for token in range(260) if not ord("a") <= token <= ord("z")]
        model.lm_head.weight[others] = 0.0
    return model if request.param == "torch" else export(model, portable=request.param == "portable")


def silent(text):
    pass


def talk_through(talk):
    """Turns of all kinds; returns what the model said."""
    said = [talk.say(text, silent).text for text in ("Who?", "Where is he?", "And when?")]
    said += [talk.regenerate(silent).text, talk.say("Why?", silent).text]
    talk.undo()
    talk.undo()
    talk.system = "Be brief."
    said.append(talk.say("How?", silent).text)
    talk.strategy = "contrastive"
    said.append(talk.say("What then?", silent).text)
    talk.strategy = "nucleus"
    said += [talk.say(text, silent).text for text in ("And then?", "So?")]
    talk.reset()
    return [*said, talk.say("Who?", silent).text]


@pytest.mark.parametrize("strategy", ["greedy", "nucleus"])
def test_answers_are_those_of_a_model_that_reads_all_anew(any_model, padded_tokenizer, strategy, monkeypatch):
    kept = talk_through(Conversation(any_model, padded_tokenizer, None, strategy, SETTINGS))
    monkeypatch.setattr(KeptCache, "begin", lambda self, ids: None)
    anew = talk_through(Conversation(any_model, padded_tokenizer, None, strategy, SETTINGS))
    assert kept == anew and len(set(kept)) > 5


def test_a_turn_reads_what_is_new_alone(any_letters, chat_tokenizer, read):
    talk = Conversation(any_letters, chat_tokenizer, None, "greedy", SETTINGS)
    said = [talk.say(text, silent).text for text in ("Who?", "Where is he?", "And when?")]
    talk.regenerate(silent)
    assert all(len(text) == 6 and text.isalpha() for text in said), "no text here has other tokens when written anew"
    lengths = [length for _, length, _ in read]
    # In the cache are the prompt and all but the answer's last token.
    assert [count for count, _, _ in read] == [
        lengths[0],
        lengths[1] - (lengths[0] + 5),
        lengths[2] - (lengths[1] + 5),
        1,
    ]
    assert all(steps == [1] * 5 for _, _, steps in read)


def test_words_that_are_encoded_in_another_way_are_read_from_there_on(any_letters, chat_tokenizer, read):
    talk = Conversation(any_letters, chat_tokenizer, None, "greedy", SETTINGS)
    answer = talk.say("Who?", silent).text
    talk.messages[-1]["content"] = answer[:2] + "." + answer[2:]
    talk.say("Where is he?", silent)
    (_, before, _), (count, length, _) = read
    assert count == length - before - 2


def test_oldest_turns_drop_out_and_the_rest_is_read(make_model, padded_tokenizer, read):
    model = make_model(vocab_size=260, num_layers=1, max_position_embeddings=128)
    talk = Conversation(model, padded_tokenizer, None, "nucleus", SETTINGS, system="S" * 20)
    dropped = [talk.say(letter * 30, silent).dropped for letter in "abc"]
    assert dropped[-1] and read[-1][0] == read[-1][1] - len(f"system: {'S' * 20}\n\nuser: ")


def test_interrupted_answer_leaves_nothing_to_go_on_from(any_model, padded_tokenizer, read):
    talk = Conversation(any_model, padded_tokenizer, None, "nucleus", SETTINGS)

    def stop(text):
        raise Interrupted(2)

    with pytest.raises(Interrupted):
        talk.say("Who?", stop)
    talk.say("Where?", silent)
    assert read[-1][0] == read[-1][1]


@pytest.mark.parametrize("changes", [{"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 16}])
@pytest.mark.parametrize("portable", [False, True])
def test_cache_of_a_window_goes_on_but_not_back(make_model, export, padded_tokenizer, read, changes, portable):
    model = make_model(vocab_size=260, num_layers=2, max_position_embeddings=400, **changes)
    model = export(model, portable=True) if portable else model
    kept = KeptCache(model)
    token_ids = padded_tokenizer("user: Who is there, and where?")["input_ids"]
    found = model.generate(
        **padded_tokenizer("user: Who is there, and where?", return_tensors="pt"),
        max_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
        eos_token_id=None,
        pad_token_id=257,
    )
    sequence = found.sequences[0].tolist()
    kept.keep(sequence, found.past_key_values)
    assert kept.begin([*sequence, 65]).get_seq_length() == len(sequence) - 1
    kept.keep(sequence, found.past_key_values)
    assert (kept.begin([*token_ids[:20], 65]) is not None) == portable
    talk = Conversation(model, padded_tokenizer, None, "greedy", SETTINGS)
    answers = talk_through(talk)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptCache, "begin", lambda self, ids: None)
        assert answers == talk_through(Conversation(model, padded_tokenizer, None, "greedy", SETTINGS))


def test_keys_whose_angles_depend_on_the_length_are_not_kept(make_model, padded_tokenizer, read):
    rope = {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
    model = make_model(vocab_size=260, num_layers=1, max_position_embeddings=128, rope_parameters=rope)
    talk = Conversation(model, padded_tokenizer, None, "nucleus", SETTINGS)
    for text in ("Who?", "Where?"):
        talk.say(text, silent)
    assert [count for count, _, _ in read] == [length for _, length, _ in read]
