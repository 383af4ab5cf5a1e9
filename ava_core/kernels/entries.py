"""Signatures of the compiled library's functions. ctypes passes bare pointers, so each call is checked against them.

A signature lists the parameters in the order of the C function: tensors as `name:type[shape]` (`?` where None may
stand), sizes by their name alone, and numbers as `name:float`. Sizes are read off the tensors: of `x:bf16[R,k]` and
`weight:bf16[n,k]` the widths must agree. `*R` is the product of leading dimensions, which must be the same wherever it
stands; `2F` and `N+1` are multiples and sums. What an index may be is checked by the functions themselves, in the
loops that use it: reading it once more would cost as much as some kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ava_core.kernels.signature import Number, Operand, Size, Sizes, parse

SOUND = -1
"""Return code of success; else FAULTS * (flat position of the first wrong index) + number of its array."""
FAULTS = 4
KEPT = 1024
"""Combinations of argument shapes per function that are remembered as checked."""

Rule = Callable[[Sizes], bool]


class Entry:
    """A function of the library.

    Attributes:
        parameters: in the order of the C function.
        passed: those that callers pass.
        optional: tensors that may be None; all of them are given, or none.
        rules: conditions on the sizes beyond the shapes, by the words of the error.
        products: whether it multiplies matrices: the library has it once per path (ava_core/kernels/build.py).
        indices: what an element of each integer tensor may be, in words; the function checks it.
    """

    def __init__(
        self, signature: str, *, rules: Mapping[str, Rule] | None = None, products: bool = False, **indices: str
    ):
        self.products = products
        self.parameters = [parse(parameter) for parameter in signature.split()]
        self.rules = dict(rules or {})
        self.indices = indices
        self.passed = [p for p in self.parameters if not isinstance(p, Size)]
        self._known: dict[tuple[Any, ...], Sizes] = {}
        self.optional = [p for p in self.passed if isinstance(p, Operand) and p.optional]

    @property
    def types(self) -> list[Any]:
        """`argtypes` for ctypes."""
        kinds = {Operand: ctypes.c_void_p, Size: ctypes.c_int64, Number: ctypes.c_float}
        return [kinds[type(parameter)] for parameter in self.parameters]

    def bind(self, given: Sequence[Tensor | float | None]) -> list[Any]:
        """Arguments for C from tensors and numbers in order, checked.

        Raises:
            ValueError: an argument has another type or shape, isn't contiguous, or breaks a rule.
        """
        # Checking takes several times as long as calling, and a training calls with the same shapes again and again.
        key = tuple(
            [(v.dtype, v.shape, v.is_cpu, v.is_contiguous()) if isinstance(v, Tensor) else type(v) for v in given]
        )
        sizes = self._known.get(key)
        if sizes is None:
            sizes = self._check(given)
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[key] = sizes
        values = iter(given)
        arguments = [sizes.get(p.name, 0) if isinstance(p, Size) else next(values) for p in self.parameters]
        return [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]

    def _check(self, given: Sequence[Tensor | float | None]) -> Sizes:
        sizes: Sizes = {}
        leads: dict[str, torch.Size] = {}
        for parameter, value in zip(self.passed, given, strict=True):
            if isinstance(parameter, Operand):
                parameter.check(value, sizes, leads)
        missing = {value is None for p, value in zip(self.passed, given, strict=True) if p in self.optional}
        if len(missing) > 1:
            names = ", ".join(operand.name for operand in self.optional)
            raise ValueError(f"{names}: must be given together, or none of them")
        for words, rule in self.rules.items():
            if not rule(sizes):
                raise ValueError(f"{', '.join(f'{size} = {length}' for size, length in sizes.items())}: {words}")
        return sizes

    def explain(self, code: int, given: Sequence[Tensor | float | None]) -> IndexError:
        """The error for a return code: which element of which index array is out of range."""
        position, number = divmod(code, FAULTS)
        arrays = {p.name: v for p, v in zip(self.passed, given, strict=True) if p.name in self.indices}
        name, array = list(arrays.items())[number]
        assert isinstance(array, Tensor)
        index = ", ".join(str(int(i)) for i in torch.unravel_index(torch.tensor(position), array.shape))
        return IndexError(f"{name}[{index}] = {int(array.flatten()[position])}: must be {self.indices[name]}")


def _even(*names: str) -> dict[str, Rule]:
    """The products read pairs of neighbours along these axes (vdpbf16ps)."""
    return {f"{name} must be even": partial(lambda name, sizes: sizes[name] % 2 == 0, name) for name in names}


def _one_or_each(name: str) -> dict[str, Rule]:
    """One for the whole batch, or one per sequence."""
    return {f"{name} must be 1 or B": lambda sizes: sizes.get(name, 1) in (1, sizes["B"])}


_ATTENTION_RULES = {
    "H must be a multiple of G": lambda sizes: sizes["H"] % sizes["G"] == 0 if sizes["G"] else sizes["H"] == 0,
    **_even("A"),
    **_one_or_each("M"),
}
_ANGLES = _even("A") | _one_or_each("P")
_ROWS = {
    "token": "the token whose slot that row has",
    "row": "-1, or the row whose slot it is",
    "slot": "the slot (of T * K) that has that row",
    "starts": "the first row of that expert: 0, then no less than the one before it, and all rows at the end",
}

ENTRIES = {
    "ava_adamw": Entry(
        "weight:bf16[*n] grad:bf16[*n] master:f32[*n] exp_avg:f32[*n] exp_avg_sq:f32[*n] n lr:float beta1:float"
        " beta2:float eps:float weight_decay:float correction1:float correction2:float"
    ),
    "ava_attention": Entry(
        "q:bf16[B,H,S,A] k:bf16[B,G,S,A] v:bf16[B,G,S,A] mask:i64[M,S]? M B H G S A scale:float out:bf16[B,H,S,A]"
        " lse:f32[B,H,S]",
        rules=_ATTENTION_RULES,
        mask="a position, or S for none",
        products=True,
    ),
    "ava_attention_backward": Entry(
        "grad:bf16[B,H,S,A] q:bf16[B,H,S,A] k:bf16[B,G,S,A] v:bf16[B,G,S,A] out:bf16[B,H,S,A] lse:f32[B,H,S]"
        " mask:i64[M,S]? M B H G S A scale:float grad_q:bf16[B,H,S,A] grad_k:bf16[B,G,S,A] grad_v:bf16[B,G,S,A]",
        rules=_ATTENTION_RULES,
        mask="a position, or S for none",
        products=True,
    ),
    "ava_cross_entropy": Entry(
        "logits:f32[T,V] labels:i64[T] T V label_smoothing:float z_weight:float losses:f32[T] normalisers:f32[T]"
        " grad:bf16[T,V]?",
        labels="-100, or at least 0 and less than the vocabulary",
    ),
    "ava_experts_forward": Entry(
        "x:bf16[T,D] token:i64[R] row:i64[T,K] slot:i64[R] weights:f32[T,K] starts:i64[N+1] gate_up:bf16[N,2F,D]"
        " down:bf16[N,D,F] T K N D F R activations:bf16[R,2F] out:bf16[T,D]",
        rules=_even("D", "F"),
        **_ROWS,
        products=True,
    ),
    "ava_experts_backward": Entry(
        "grad:bf16[T,D] x:bf16[T,D] token:i64[R] row:i64[T,K] slot:i64[R] weights:f32[T,K] starts:i64[N+1]"
        " gate_up:bf16[N,2F,D] down:bf16[N,D,F] activations:bf16[R,2F] T K N D F R grad_x:bf16[T,D]"
        " grad_gate_up:bf16[N,2F,D] grad_down:bf16[N,D,F] grad_weights:f32[T,K]",
        rules=_even("D", "F"),
        **_ROWS,
        products=True,
    ),
    "ava_linear": Entry("x:bf16[R,k] weight:bf16[n,k] R k n out:bf16[R,n]", rules=_even("k"), products=True),
    "ava_linear_input": Entry(
        "grad:bf16[R,k] weight:bf16[k,n] R k n grad_x:bf16[R,n]", rules=_even("k"), products=True
    ),
    "ava_linear_weight": Entry("grad:bf16[R,m] x:bf16[R,n] R m n grad_weight:bf16[m,n]", products=True),
    "ava_logits": Entry("hidden:bf16[T,D] weight:bf16[V,D] T D V out:f32[T,V]", rules=_even("D"), products=True),
    "ava_add_head_gradient": Entry("grad:bf16[T,V] hidden:bf16[T,D] T V D grad_weight:f32[V,D]", products=True),
    "ava_narrow_linear": Entry("x:bf16[T,D] weight:bf16[n,D] T n D out:f32[T,n]"),
    "ava_narrow_linear_backward": Entry(
        "grad:f32[T,n] x:bf16[T,D] weight:bf16[n,D] T n D grad_x:bf16[T,D] grad_weight:bf16[n,D]"
    ),
    "ava_norm_rotate": Entry(
        "x:bf16[B,S,H,A] weight:bf16[A]? cosines:f32[P,1,S,A] sines:f32[P,1,S,A] P B S H A eps:float"
        " out:bf16[B,H,S,A] scales:f32[B,S,H]?",
        rules=_ANGLES,
    ),
    "ava_norm_rotate_backward": Entry(
        "grad:bf16[B,H,S,A] x:bf16[B,S,H,A] weight:bf16[A]? cosines:f32[P,1,S,A] sines:f32[P,1,S,A] P"
        " scales:f32[B,S,H]? B S H A grad_x:bf16[B,S,H,A] grad_weight:bf16[A]?",
        rules=_ANGLES,
    ),
    "ava_product": Entry(
        "a:bf16[N,m,k] b:bf16[N,k,n] plus:bf16[N,m,n] N m k n beta:float out:bf16[N,m,n]",
        rules=_even("k"),
        products=True,
    ),
    "ava_rms_norm": Entry("x:bf16[*R,n] weight:bf16[n] R n eps:float out:bf16[*R,n] scales:f32[*R]"),
    "ava_rms_norm_backward": Entry(
        "grad:bf16[*R,n] x:bf16[*R,n] weight:bf16[n] scales:f32[*R] R n grad_x:bf16[*R,n] grad_weight:bf16[n]"
    ),
    "ava_symmetric": Entry(
        "x:bf16[N,m,k] plus:bf16[N,m,m]? N m k alpha:float beta:float out:bf16[N,m,m]",
        rules=_even("k"),
        products=True,
    ),
    "ava_zero_computation": Entry(
        "base:bf16[T,D] x:bf16[T,D] scale:f32[T] mix:f32[T,C] constants:bf16[C,D] T C D out:bf16[T,D]"
    ),
    "ava_zero_computation_backward": Entry(
        "grad:bf16[T,D] x:bf16[T,D] scale:f32[T] mix:f32[T,C] constants:bf16[C,D] T C D grad_x:bf16[T,D]"
        " grad_scale:f32[T] grad_mix:f32[T,C] grad_constants:bf16[C,D]"
    ),
}
