"""How text is divided into the words that lexical search counts; the same for passages and queries, of any language.

Words are runs of letters, digits and the marks that combine with them, normalised (NFKC) and without case. Of Chinese
and Japanese, which put no spaces between words, each ideograph and each kana is a word (as in Unicode's UAX #29). Thai,
Lao, Khmer and Burmese, which put none either, aren't divided: there a word is what stands between two spaces.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

_ASCII = re.compile("[a-z0-9]+")
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    if text.isascii():
        return _ASCII.findall(text.lower())
    return _unicode().findall(unicodedata.normalize("NFKC", text).casefold())


@cache
def _unicode() -> re.Pattern[str]:
    marks = "".join(letter for letter in map(chr, range(0x300, 0xFFFF)) if unicodedata.category(letter)[0] == "M")
    return re.compile(f"[{_IDEOGRAPHS}]|(?:(?![{_IDEOGRAPHS}])[^\\W_][{marks}]*)+")
