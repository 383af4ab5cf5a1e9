"""What each token of a tokenizer adds to a text: bytes, of which a character may need those of several tokens."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTES = {char: byte for byte, char in bytes_to_unicode().items()}
"""The byte that a character of a byte-level vocabulary stands for (GPT-2)."""
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes(dict[int, bytes]):
    """The bytes of tokens by id; none for special tokens, and for ids beyond the vocabulary.

    Bytes of consecutive tokens joined are a text's UTF-8, as long as the tokens are those of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        backend: Any = tokenizer.backend_tokenizer
        self._vocabulary = backend.id_to_token
        self._special = {token for token, added in backend.get_added_tokens_decoder().items() if added.special}
        self._byte_level = "ByteLevel" in repr(backend.decoder)

    def __missing__(self, token: int) -> bytes:
        entry = self._vocabulary(token)
        self[token] = b"" if entry is None or token in self._special else self._of(entry)
        return self[token]

    def name(self, token: int) -> str:
        """What people and OpenAI's interface call a token: its text, or `bytes:` and the bytes of a part of one."""
        data = self[token]
        if not data:
            return self._vocabulary(token) or f"token_id:{token}"
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + data.decode("ascii", "backslashreplace")

    def _of(self, entry: str) -> bytes:
        if self._byte_level:
            # An added token may hold characters that stand for no byte; then all of it is plain text.
            plain = any(char not in _BYTES for char in entry)
            return entry.encode() if plain else bytes(_BYTES[char] for char in entry)
        byte = _BYTE_FALLBACK.fullmatch(entry)
        return bytes([int(byte[1], 16)]) if byte else entry.replace("\u2581", " ").encode()


@lru_cache(maxsize=8)
def token_bytes(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    """Those of a tokenizer, made once."""
    return TokenBytes(tokenizer)
