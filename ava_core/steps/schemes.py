"""The schemes of quantisation: which widths the matrices of the exported model may get.

To add a scheme, add its row here, and the section with its aims and bounds to `ava_core/config/quantize.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

HALF, SINGLE = 16, 32
"""Bits of float16 and of float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """A scheme, by the bits of a weight.

    Attributes:
        name: `--scheme`, and what the figures of a model so quantised begin with.
        bits: what the scheme is called after: what a matrix gets if nothing is measured, where its widths allow it.
        experts: widths that a layer's FFN experts may get, the smallest first; 16 is float16.
        others: widths that all other matrices may get.
    """

    name: str
    bits: int
    experts: tuple[int, ...] = ()
    others: tuple[int, ...] = ()

    @property
    def rounds(self) -> bool:
        """Whether it makes the weights other than they were trained."""
        return self.bits < SINGLE


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="fp32", bits=SINGLE),
        # What isn't the experts is small beside them and costs more when rounded to 4 bits.
        Scheme(name="int8", bits=8, experts=(4, 8), others=(8, HALF)),
        Scheme(name="int4", bits=4, experts=(4, 8), others=(8,)),
    )
}
"""By name, the largest models first."""
SMALLEST_FIRST = tuple(reversed(SCHEMES))
