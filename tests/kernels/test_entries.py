"""Every function of the library, with arguments that it must take and with those that it must refuse.

The functions are found in the C++ sources: a new one has to be in the table of entries, and is fuzzed by that alone.
"""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ava_core.kernels import build
from ava_core.kernels.entries import ENTRIES, FAULTS
from ava_core.kernels.library import call
from ava_core.kernels.signature import Number, Operand
from ava_core.models.dispatch import sort_by_expert
from tests.kernels.guarded import guarded

SOURCES = "\n".join(path.read_text() for path in sorted(build.SOURCES.rglob("*.cpp")))
FUNCTIONS = dict(re.findall(r"^int64_t (?:AVA_ENTRY\()?(ava_\w+)\)?\(([^)]+)\)\s*{", SOURCES, re.MULTILINE))
"""Parameters of each function with C linkage that takes any, by its name."""
POINTERS = {"bf16": torch.bfloat16, "float": torch.float32, "int64_t": torch.int64, "uint8_t": torch.bool}
EVERY = pytest.mark.parametrize("name", sorted(FUNCTIONS))
EVERY_INDEX = pytest.mark.parametrize(
    ("name", "array"), [(name, array) for name, entry in sorted(ENTRIES.items()) for array in entry.indices]
)
fuzz = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
INT64 = st.integers(-(2**63), 2**63 - 1)


@st.composite
def arguments(draw, name):
    """What a function takes, by parameter: random numbers, indices that belong together, tensors of guarded memory."""
    entry = ENTRIES[name]
    sizes = {p.name: draw(st.integers(0, 9), label=p.name) for p in entry.parameters if not hasattr(p, "dtype")}
    for size in ("A", "D", "F", "k"):  # even, where a rule says so
        sizes[size] = 2 * draw(st.integers(1, 40), label=size)
    sizes |= {"B": draw(st.integers(1, 3)), "V": draw(st.integers(1, 200))}
    sizes |= {size: draw(st.sampled_from([1, sizes["B"]])) for size in ("M", "P")}
    if "G" in sizes:
        sizes["H"] = sizes["G"] * draw(st.integers(1, 3), label="H / G")
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    indices = make_indices(name, sizes, generator)
    with_optional = draw(st.booleans(), label="optional tensors")
    given = {}
    for parameter in entry.passed:
        if isinstance(parameter, Number):
            given[parameter.name] = 0.5
        elif parameter.optional and not with_optional:
            given[parameter.name] = None
        elif parameter.name in indices:
            given[parameter.name] = guarded(indices[parameter.name])
        else:
            shape = [d.times * sizes.get(d.size, 0) + d.plus for d in parameter.shape]
            given[parameter.name] = guarded(make_values(shape, parameter.dtype, generator))
    return given


def make_values(shape, dtype, generator):
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.7
    return torch.rand(shape, generator=generator).to(dtype)


def make_indices(name, sizes, generator):
    """Index arrays that belong together; may set sizes that depend on them."""
    if name == "ava_cross_entropy":
        labels_T = torch.randint(0, sizes["V"], (sizes["T"],), generator=generator)
        return {"labels": labels_T.masked_fill(torch.rand(sizes["T"], generator=generator) < 0.3, -100)}
    if name.startswith("ava_attention"):
        masks = sizes.get("M", 0), sizes["S"]
        return {"mask": torch.randint(0, sizes["S"] + 1, masks, generator=generator)}
    if name.startswith("ava_experts"):
        T, N = sizes["T"], sizes["N"]
        K = sizes["K"] = min(sizes["K"], N)
        ids_TK = torch.rand(T, N, generator=generator).topk(K).indices
        p = sort_by_expert(ids_TK, torch.rand(T, K, generator=generator) < 0.8, N, keep_unused=False)
        sizes["R"] = len(p.slot_R)
        starts_N = torch.nn.functional.pad(p.counts_N.cumsum(0), (1, 0))
        row_TK = p.row_TK.masked_fill(~p.occupied_TK, -1)
        return {"token": p.token_R, "row": row_TK, "slot": p.slot_R, "starts": starts_N}
    return {}


def test_functions_and_table_are_the_same():
    assert set(FUNCTIONS) == set(ENTRIES)
    assert len(FUNCTIONS) == len(re.findall(r"\bava_\w+\)?\((?!\))", SOURCES)), (
        "a function that the pattern above doesn't see"
    )


@EVERY
def test_parameters_in_c_are_those_of_the_table(name):
    declared = []
    for text in FUNCTIONS[name].split(","):
        kind = text.split()[:-1]
        pointer = kind[-1].endswith("*")
        declared.append(POINTERS[kind[-1][:-1]] if pointer else kind[-1])
    expected = [
        p.dtype if isinstance(p, Operand) else {"Number": "float", "Size": "int64_t"}[type(p).__name__]
        for p in ENTRIES[name].parameters
    ]
    assert declared == expected


@EVERY
def test_every_integer_tensor_is_an_index_that_is_checked(name):
    integers = [p.name for p in ENTRIES[name].passed if isinstance(p, Operand) and p.dtype == torch.int64]
    assert integers == list(ENTRIES[name].indices)
    assert len(integers) <= FAULTS


@EVERY
@fuzz
@given(data=st.data())
def test_right_arguments_of_any_size_stay_inside_their_memory(name, data):
    call(name, *data.draw(arguments(name)).values())


@EVERY
@fuzz
@given(data=st.data())
def test_wrong_type_shape_or_stride_is_refused_by_name(name, data):
    good = data.draw(arguments(name))
    victim = data.draw(st.sampled_from([p for p in ENTRIES[name].passed if isinstance(p, Operand)]))
    value = good[victim.name]
    wrong = [torch.zeros(3, 1, 4, 1, 5, 9), 7, "text"]
    if value is not None:
        wrong += [value.double(), value.to(torch.int32), value.to("meta"), value[..., None, None]]
        if victim.shape[0].leading is False:
            wrong += [torch.cat((value, value[..., -1:]), -1), torch.cat((value, value[-1:]))] if value.numel() else []
        if value.numel() > 1:
            wrong.append(value.new_zeros(*value.shape, 2)[..., 0])
    wrong = [bad for bad in wrong if not fits(name, good | {victim.name: bad})]
    bad = data.draw(st.sampled_from(wrong))
    with pytest.raises(ValueError, match=r"must be") as caught:
        call(name, *(good | {victim.name: bad}).values())
    if not isinstance(bad, torch.Tensor) or bad.dtype != victim.dtype or bad.device.type != "cpu":
        assert str(caught.value).startswith(f"{victim.name} ")


def fits(name, given):
    """Whether a changed argument is right by chance: its dimension was told by it alone."""
    try:
        ENTRIES[name].bind(list(given.values()))
    except ValueError:
        return False
    return True


@EVERY
def test_only_all_optional_tensors_may_be_missing(name):
    entry = ENTRIES[name]
    zeros = {p.name: torch.zeros([2 * d.times + d.plus if d.size else d.plus for d in p.shape], dtype=p.dtype)
             for p in entry.passed if isinstance(p, Operand)}  # fmt: skip
    numbers = {p.name: 0.0 for p in entry.passed if isinstance(p, Number)}
    given = {p.name: {**zeros, **numbers}[p.name] for p in entry.passed}
    for operand in (p for p in entry.passed if isinstance(p, Operand)):
        alone = operand.optional and len(entry.optional) == 1
        if not alone:
            with pytest.raises(ValueError, match="must be"):
                entry.bind(list((given | {operand.name: None}).values()))
    entry.bind(list((given | {operand.name: None for operand in entry.optional}).values()))


@EVERY_INDEX
@settings(fuzz, max_examples=60)
@given(data=st.data())
def test_wrong_index_is_refused_and_named(name, array, data):
    good = data.draw(arguments(name).filter(lambda given: given[array] is not None and given[array].numel() > 0))
    ends = {n for given in good.values() if isinstance(given, torch.Tensor) for n in (*given.shape, given.numel())}
    value = data.draw(st.one_of(st.sampled_from(sorted(ends)), st.integers(-101, 12), INT64), label="value")
    index = data.draw(st.integers(0, good[array].numel() - 1))
    bad = good[array].clone()
    before = int(bad.flatten()[index])
    bad.view(-1)[index] = value
    given = {**good, array: guarded(bad)}
    if may_stand(array, value, before, index, good):
        call(name, *given.values())
        return
    with pytest.raises(IndexError, match=r"\[[\d, ]*\] = -?\d+: must be ") as caught:
        call(name, *given.values())
    # A row and a slot that disagree may each be the wrong one; a start that is too large makes the next one too small.
    assert array in ("row", "slot") or str(caught.value).startswith(f"{array}[")
    assert array != "labels" or f" = {value}: " in str(caught.value)


def may_stand(array, value, before, index, given):
    """Whether an array is right with another value at one index."""
    if array == "labels":
        return value == -100 or 0 <= value < given["logits"].shape[1]
    if array == "mask":
        return 0 <= value <= given["q"].shape[2]
    if array == "starts":
        starts = given["starts"].tolist()
        inside = 0 < index < len(starts) - 1
        return value == before or (inside and starts[index - 1] <= value <= starts[index + 1])
    return value == before


@pytest.mark.parametrize("value", [-1, -99, -101, 40, 10**7, 2**62])
def test_label_outside_the_vocabulary_is_told_with_its_index(value):
    from ava_core import kernels

    labels = torch.tensor([1, value, -100, value])
    with pytest.raises(IndexError, match=rf"labels\[1\] = {value}: must be -100, or at least 0 and less than"):
        kernels.cross_entropy_and_gradient(torch.zeros(4, 40), labels, label_smoothing=0.0, z_weight=0.0, gradient=True)


def test_fault_is_the_same_on_any_number_of_threads():
    threads = torch.get_num_threads()
    labels = torch.full((4000,), 3)
    labels[[700, 1500, 3900]] = 99
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            with pytest.raises(IndexError, match=r"labels\[700\] = 99"):
                call("ava_cross_entropy", torch.zeros(4000, 8), labels, 0.0, 0.0, *torch.zeros(2, 4000), None)
    finally:
        torch.set_num_threads(threads)
