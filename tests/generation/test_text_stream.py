from hypothesis import given, settings
from hypothesis import strategies as st

from ava_core.generation.text_stream import TextStream
from ava_core.generation.token_bytes import token_bytes


def pieces(tokenizer, text: str, *stop: str) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, stop)
    return [*map(stream.push, text.encode()), stream.flush()], stream


def test_character_is_shown_when_its_last_byte_is_there(byte_tokenizer):
    shown, _ = pieces(byte_tokenizer, "aé€𝄞z")
    assert shown == ["a", "", "é", "", "", "€", "", "", "", "𝄞", "z", ""]


def test_bytes_that_never_become_a_character_are_shown_at_the_end(byte_tokenizer):
    stream = TextStream(byte_tokenizer)
    assert [stream.push(token) for token in (104, 0xE2, 0x82)] == ["h", "", ""]
    assert stream.flush() == "\ufffd"


def test_nothing_of_a_stop_string_is_shown_before_it_is_certain(byte_tokenizer):
    shown, stream = pieces(byte_tokenizer, "one two<e>x", "<end>", "<em>")
    assert "".join(shown) == "one two<e>x"
    assert not stream.stopped
    assert shown[:10] == ["o", "n", "e", " ", "t", "w", "o", "", "", "<e>"]
    shown, stream = pieces(byte_tokenizer, "one<end>two", "<end>", "two")
    assert "".join(shown) == "one"
    assert stream.stopped
    shown, stream = pieces(byte_tokenizer, "one<en", "<end>")
    assert "".join(shown) == "one<en"


def test_special_tokens_are_left_out(byte_tokenizer):
    stream = TextStream(byte_tokenizer)
    assert stream.push(104) + stream.push(256) + stream.push(105) + stream.flush() == "hi"


TOKENS = st.lists(
    st.one_of(
        st.integers(0, 256).map(lambda token: [token]),
        st.sampled_from(["e\u0301", "👩\u200d🚀", "\ufffd", "ß", "\U0010ffff", "a"]).map(
            lambda text: list(text.encode())
        ),
        st.sampled_from(
            [[0xE2, 0x80], [0xF0, 0x9F], [0xED, 0xA0, 0x80], [0xC0, 0xAF], [0xF4, 0x90], [0xE2, 256, 0x82]]
        ),
    ),
    max_size=12,
).map(lambda parts: [token for part in parts for token in part])


@given(TOKENS, st.integers(0, 6))
@settings(max_examples=300, deadline=None)
def test_text_is_the_tokenizer_s_whatever_the_bytes(byte_tokenizer, tokens, echoed):
    stream = TextStream(byte_tokenizer)
    shown = [stream.echo(tokens[:echoed]), *map(stream.push, tokens[echoed:]), stream.flush()]
    assert "".join(shown) == byte_tokenizer.decode(tokens, skip_special_tokens=True)
    joined = b"".join(token_bytes(byte_tokenizer)[token] for token in tokens)
    assert "".join(shown) == joined.decode(errors="replace")


@given(TOKENS, st.lists(st.sampled_from(["a", "ß", "\u0301", "\ufffd", "\ufffd\ufffd", "👩\u200d"]), max_size=2))
@settings(max_examples=200, deadline=None)
def test_text_ends_before_the_first_stop_string(byte_tokenizer, tokens, stop):
    stream = TextStream(byte_tokenizer, stop)
    shown = "".join([*map(stream.push, tokens), stream.flush()])
    whole = byte_tokenizer.decode(tokens, skip_special_tokens=True)
    assert whole.startswith(shown)
    assert not any(each in shown for each in stop)
    assert stream.stopped == any(each in whole for each in stop)
    assert stream.stopped or shown == whole
