"""Answers to items of reasoning-gym, as its checkers judge them, and what a checker never gets to see."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from ava_core.alignment.conversation import Message
from ava_core.alignment.rewards import Answer
from ava_core.alignment.rewards.gym import EVALUATED, UNCHECKED, reward
from ava_core.config.conversations import ConversationSource
from ava_core.data.gym_tasks import UNFIT
from ava_core.data.sources.gym import open_source
from ava_core.errors import AvaError

EVALUATORS = {"eval", "exec", "parse_expr", "sympify", "compile"}
OWN_VALUES = {
    "basic_arithmetic": "its own expression",
    "bitwise_arithmetic": "its own expression, which is made again",
    "codeio": "programs: unfit",
    "generators_00_49": "of gsm_symbolic: its own fractions",
    "generators_50_99": "of gsm_symbolic: its own fractions",
    "intermediate_integration": "unfit",
    "number_sorting": "its own answer, which is made again",
    "polynomial_multiplication": "unfit",
    "propositional_logic": "by a parser of its own",
}
"""Modules of the package that evaluate text, but none of a model's."""


def items(task: str, count: int = 2, seed: int = 3, **settings) -> list[Answer]:
    """Right answers to items, as far as the task has answers."""
    source = open_source(ConversationSource(gym=task, count=count, seed=seed, settings=settings), None, None)
    return [
        Answer(
            (Message("user", row.values["question"]),),
            row.values["answer"] or "",
            row.values["answer"],
            {"gym": row.values["gym"]},
        )
        for row in source.rows()
    ]


def judged(answer: Answer, text: str) -> float:
    return reward([replace(answer, text=text)])[0]


def test_right_answers_are_worth_one_and_those_of_other_items_hardly_anything():
    right = items("chain_sum", 20)
    assert reward(right) == [1.0] * 20
    wrong = [replace(answer, text=other.text) for answer, other in zip(right, [*right[1:], right[0]], strict=True)]
    assert sum(reward(wrong)) < 2.0


def test_answer_may_stand_in_tags_and_in_another_form_that_the_checker_takes():
    [item] = items("chain_sum", 1)
    assert judged(item, f" {item.reference}\n") == 1.0
    assert judged(item, f"It is 99 or so. <answer> {item.reference} </answer>") == 1.0
    assert judged(item, f"{item.reference}.0") == 1.0
    assert judged(item, "") == judged(item, "<answer></answer>") == 0.0


def test_settings_are_those_of_the_items():
    answers = items("chain_sum", 5, min_terms=7, max_terms=7)
    assert all(answer.prompt[0].content.count(" + ") + answer.prompt[0].content.count(" - ") == 6 for answer in answers)
    assert reward(answers) == [1.0] * 5


@pytest.mark.parametrize("task", ["rearc", "arc_agi"])
def test_checker_that_compares_tuples_gets_them_though_the_facts_are_json(task):
    assert reward(items(task, 1)) == [1.0]


def test_checker_that_raises_at_another_form_gives_nothing():
    [item] = items("prime_factorization", 1)
    assert judged(item, item.reference) == 1.0 and judged(item, "garbage") == 0.0


@pytest.mark.parametrize("task", EVALUATED)
def test_answer_that_is_code_is_not_run(task, tmp_path, monkeypatch):
    [item] = items(task, 1)
    monkeypatch.chdir(tmp_path)
    for code in ("open('run', 'w')", "[open('run', 'w')]", "__import__('pathlib').Path('run').touch()", "9 ** 9 ** 9"):
        assert judged(item, code) == 0.0
        assert judged(item, f"<answer>{code}</answer>") == 0.0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", EVALUATED)
def test_right_answer_is_shown_to_a_checker_that_evaluates(task):
    assert all(worth > 0.9 for worth in reward([item for item in items(task, 4) if item.reference is not None]))


def test_list_where_text_was_asked_for_has_what_the_checker_gives():
    [item] = items("spiral_matrix", 1)
    assert judged(item, f"[{', '.join(item.reference.split())}]") == pytest.approx(0.1)


@pytest.mark.parametrize("task", UNCHECKED)
def test_task_whose_checker_can_not_be_trusted_is_refused(task):
    with pytest.raises(AvaError, match=f"reward gym: {task}: its checker .*: take another task"):
        reward(items(task, 1))


def test_all_that_the_package_evaluates_is_known():
    """A new version whose checkers evaluate more is seen here."""
    found = set()
    for path in Path(reasoning_gym.__file__).parent.rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {getattr(call, "id", None) or getattr(call, "attr", None) for call in calls}
        bare = {getattr(call, "id", None) for call in calls}
        if names & (EVALUATORS - {"compile"}) or "compile" in bare:
            found.add(path.stem)
    refused = {task for task, why in UNCHECKED.items() if "evaluates" in why}
    assert found == {*EVALUATED, *refused, *OWN_VALUES}


def test_answer_to_another_prompt_is_refused():
    with pytest.raises(AvaError, match="reward gym: answer 2: its prompt isn't of a source `gym`"):
        reward([*items("chain_sum", 1), Answer((), "4")])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entry": {"question": "another", "answer": "4"}}, "reasoning-gym makes another item 0 of chain_sum now"),
        ({"seed": 4}, "reasoning-gym makes another item 0 of chain_sum now"),
        ({"index": "first"}, "facts.gym lacks a part, or has it in another form"),
        ({"settings": {"data_file": "/etc/passwd"}}, "settings.data_file: none that can be set"),
        ({"task": "chain_some"}, "reasoning-gym has no such task: did you mean chain_sum"),
        ({"task": "codeio"}, "it runs programs"),
    ],
)
def test_facts_that_are_not_of_the_item_are_refused(change, said):
    [item] = items("chain_sum", 1)
    with pytest.raises(AvaError, match=said):
        reward([replace(item, facts={"gym": {**item.facts["gym"], **change}})])


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(DATASETS.keys() - UNFIT.keys() - UNCHECKED.keys()))
def test_every_task_knows_its_own_answer_from_garbage(task):
    answers = items(task)
    if answers[0].reference is not None:
        assert reward(answers) == [1.0, 1.0]
    assert max(reward([replace(answer, text="perhaps") for answer in answers])) <= 0.3
