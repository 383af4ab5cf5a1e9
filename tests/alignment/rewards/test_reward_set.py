"""Several rewards together: their mean, and what is said of a function that isn't one."""

import hashlib
import math
import re
import sys
from functools import partial

import numpy
import pytest
import torch
from pydantic import BaseModel, ValidationError

from ava_core.alignment.rewards.functions import digest_of
from ava_core.alignment.rewards.reward_set import RewardSet
from ava_core.config.rewards import RewardEntry, RewardList
from ava_core.errors import AvaError, ConfigError
from tests.alignment.rewards.verses import MACBETH, PORTIA, answers


class Section(BaseModel):
    rewards: RewardList


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `own_rewards` of these lines, that can be imported in this test alone."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(*lines: str) -> None:
        monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
        (tmp_path / "own_rewards.py").write_text("\n".join(lines))

    write()
    yield write
    sys.modules.pop("own_rewards", None)


def own(name: str = "reward", **fields) -> RewardEntry:
    return RewardEntry(function=f"own_rewards:{name}", **fields)


def scored(*entries: RewardEntry, texts=("a", "bb")):
    return RewardSet.from_config(entries).score(answers(*texts))


def test_total_is_the_weighted_mean_of_the_named_parts(module):
    module("def reward(answers):", "    return [len(answer.text) for answer in answers]")
    scores = scored(RewardEntry(name="speech", weight=3.0), own(weight=1.0), texts=(PORTIA, "", "so be it"))
    assert scores.parts == {"speech": (1.0, 0.0, 1.0), "own_rewards:reward": (float(len(PORTIA)), 0.0, 8.0)}
    assert scores.total == pytest.approx(((3 + len(PORTIA)) / 4, 0.0, 11 / 4))


def test_reward_without_weight_is_measured_and_changes_nothing():
    with_it = scored(RewardEntry(name="metre"), RewardEntry(name="lines", weight=0.0), texts=(PORTIA, MACBETH))
    assert with_it.total == with_it.parts["metre"] != with_it.parts["lines"] == (1.0, 1.0)


def test_same_answers_have_the_same_scores_again():
    entries = [RewardEntry(name=name) for name in ("metre", "lines", "speech")]
    assert scored(*entries, texts=(PORTIA, MACBETH, "x")) == scored(*entries, texts=(PORTIA, MACBETH, "x"))


def test_no_answers_have_no_scores():
    assert scored(RewardEntry(name="metre"), texts=()).total == ()


@pytest.mark.parametrize(
    "values", [[1, True], (0.5, 2.0), numpy.array([1.0, 2.0], numpy.float32), torch.tensor([1.0, 2.0]),
               [torch.tensor(1), numpy.bool_(True)]],
)  # fmt: skip
def test_numbers_of_arrays_and_tensors_are_numbers(module, monkeypatch, values):
    module("def reward(answers):", "    return VALUES")
    rewards = RewardSet.from_config([own()])
    monkeypatch.setattr("own_rewards.VALUES", values, raising=False)
    total = rewards.score(answers("a", "b")).total
    assert total == tuple(float(value) for value in values) and {type(value) for value in total} == {float}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('length')", "raises KeyError: 'length': mend"),
        ("return [0.5]", "gives 1 values for 2 answers: it must give one for each"),
        ("return [0.5] * 3", "gives 3 values for 2 answers"),
        ("return 0.5", "gives float, no sequence of numbers: it gets all answers at once"),
        ("return None", "gives NoneType, no sequence of numbers"),
        ("return [0.5, float('nan')]", "value 2 = nan: must be finite: mend the function, or take it out"),
        ("return [float('-inf'), 0.5]", "value 1 = -inf: must be finite"),
        ("return [0.5, None]", "value 2 = None: is NoneType, not a number"),
        ("return ['0.5', 0.5]", "value 1 = '0.5': is str, not a number"),
        ("return [[0.5], [0.5]]", "value 1 = [0.5]: is list, not a number"),
        ("return [0.5, 1j]", "value 2 = 1j: is complex, not a number"),
    ],
)
def test_fault_of_a_function_is_one_line_with_its_name(module, body, said):
    module("def reward(answers):", f"    {body}")
    with pytest.raises(AvaError, match=re.escape(f"reward own_rewards:reward: {said}")) as caught:
        scored(own())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("function", "lines", "said"),
    [
        ("no_such_module_at_all:reward", [], "can't be imported (ModuleNotFoundError: No module named"),
        (
            "own_rewards:reward",
            ["import math, no_such_part"],
            "can't be imported (ModuleNotFoundError: No module named",
        ),
        ("own_rewards:reward", ["def broken(:"], "can't be imported (SyntaxError: "),
        ("own_rewards:reward", ["1 / 0"], "can't be imported (ZeroDivisionError: division by zero): mend the module"),
        ("own_rewards:reward", ["rewards = 1"], "module own_rewards has no `reward`: correct its `function`"),
        ("own_rewards:reward", ["reward = 0.5"], "is float, not callable: name a function"),
    ],
)
def test_function_that_is_not_there_is_refused_before_any_answer(module, function, lines, said):
    module(*lines)
    with pytest.raises(ConfigError, match=re.escape(f"reward {function}: {said}")):
        RewardSet.from_config([RewardEntry(function=function)])


def test_module_is_imported_only_when_a_set_is_made_of_it(module, tmp_path):
    module("from pathlib import Path", f"Path({str(tmp_path / 'imported')!r}).touch()", "reward = len")
    entry = own()
    RewardSet.from_config([RewardEntry(name="metre")])
    assert not (tmp_path / "imported").exists()
    RewardSet.from_config([entry])
    assert (tmp_path / "imported").exists()


def test_digest_of_a_function_is_that_of_its_file(module, tmp_path):
    module("def reward(answers):", "    return [0.0 for _ in answers]")
    [made] = RewardSet.from_config([own()]).rewards
    assert digest_of(made.function) == hashlib.sha256((tmp_path / "own_rewards.py").read_bytes()).hexdigest()


@pytest.mark.parametrize("function", [math.fsum, len, partial(math.fsum), {}.get])
def test_function_without_a_file_has_no_digest(function):
    with pytest.raises(AvaError, match="has no source file that could be digested"):
        digest_of(function)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{}], "names no reward: give exactly one of name, function, model"),
        ([{"name": "metre", "function": "a:b"}], "names both metre and a:b: give exactly one of name, function"),
        ([{"model": "models:/scorer@champion"}], "model = models:/scorer@champion: must be a folder"),
        ([{"model": "one"}, {"model": "two"}], "name model twice"),
        ([{"name": "rhyme"}], "Input should be 'metre', 'lines', 'speech' or 'gym'"),
        ([{"function": "a.b"}], "String should match pattern"),
        ([{"function": "../a:b"}], "String should match pattern"),
        ([{"function": "a:b.c"}], "String should match pattern"),
        ([{"name": "metre", "weight": -1.0}], "greater than or equal to 0"),
        ([{"name": "metre", "wait": 1.0}], "Extra inputs are not permitted"),
        ([{"name": "metre"}, {"name": "lines"}, {"name": "metre", "weight": 2.0}], "name metre twice"),
        ([{"name": "metre", "weight": 0.0}], "weight = 0 in all of them: give one a weight > 0"),
        ([], "at least 1 item"),
    ],
)
def test_list_that_says_no_rewards_is_refused(entries, said):
    with pytest.raises(ValidationError, match=re.escape(said)):
        Section(rewards=entries)
