"""References for bits per byte: the size of a text under bz2."""

from __future__ import annotations

import bz2


def bz2_bits_per_byte(text: bytes) -> float:
    """Bits that bz2 at its best level needs for a byte of the text. It sees the text alone, no training split."""
    return 8 * len(bz2.compress(text, 9)) / len(text)
