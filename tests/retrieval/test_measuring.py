"""Questions with known answers, and the figures of an index."""

import json
import math

import pytest

from ava_core.errors import AvaError
from ava_core.retrieval.fusion import Hit
from ava_core.retrieval.measuring import measure
from ava_core.retrieval.passage import Passage
from ava_core.retrieval.questions import Question, make_questions, read_questions
from ava_core.retrieval.retriever import Found, Retriever
from tests.retrieval.made import build

SCENE = """Enter the ghost of a king in armour

MARCELLUS
Peace, break thee off; look, where it comes again!
Thou art a scholar; speak to it, Horatio.
"""


def scenes(count):
    return [
        Passage(SCENE.replace("Horatio", f"Horatio{n}"), f"play{n % 3}", 300 * n, 300 * n + len(SCENE) + 2, "ACT I")
        for n in range(count)
    ]


def test_questions_are_lines_with_words_left_out_and_directions():
    passages = scenes(40)
    questions = make_questions(passages, 12, 1)
    assert questions == make_questions(passages, 12, 1) != make_questions(passages, 12, 2)
    assert len({question.question for question in questions}) > 3
    assert [number for number, question in enumerate(questions) if question.start is None] == [3, 7, 11]
    assert questions[3].question == "Enter the ghost of a king in armour"
    for question in questions:
        if question.start is not None:
            [passage] = [one for one in passages if question.is_answered_by(one)]
            assert passage.text[question.start - passage.start : question.end - passage.start] == question.answer
            words = question.answer.split()
            assert len(question.question.split()) == len(words) - round(0.4 * len(words))
            assert set(question.question.split()) <= set(words)


def test_an_answer_is_a_passage_with_a_part_of_the_place():
    question = Question("q", "a", "play", 100, 120)
    places = {(0, 100): False, (0, 101): True, (119, 200): True, (120, 200): False}
    for (start, end), right in places.items():
        assert question.is_answered_by(Passage("", "play", start, end)) == right
    assert not question.is_answered_by(Passage("", "other", 100, 120))
    assert Question("q", "", "play").is_answered_by(Passage("", "play", 0, 1))


class Fixed:
    """Finds passages of documents 0, 1, 2, ... in that order, whatever is asked."""

    embedder = None

    def __init__(self, count):
        self.index = self
        self.passages = self
        self.labels = ("", "staff")
        self.count = count

    def search(self, query, top_k, *, mode, labels):
        assert labels == self.labels
        return [Found(n, Passage("", f"doc{n}", 0, 1), Hit(n, 1.0)) for n in range(min(top_k, self.count))]


def test_figures_are_those_of_their_definitions():
    questions = [Question("q", "", f"doc{n}") for n in (0, 3, 7, 30)]
    [measured] = measure(Fixed(20), questions)
    assert measured.ranks == [1, 4, 8, None]
    assert measured.figures == {
        "recall_1": 0.25,
        "recall_5": 0.5,
        "recall_10": 0.75,
        "mrr_10": pytest.approx((1 + 1 / 4 + 1 / 8) / 4),
        "ndcg_10": pytest.approx((1 + 1 / math.log2(5) + 1 / math.log2(9)) / 4),
    }
    assert 0 <= measured.timings["p50_ms"] <= measured.timings["p99_ms"]


def test_lines_of_an_index_are_found_in_it(tmp_path):
    index = build(tmp_path / "index", scenes(30), None, settings={"embedding": "none"})
    retriever = Retriever.open(index)
    questions = [one for one in make_questions(retriever.index.passages, 30, 0) if "Horatio" in one.question]
    assert questions
    [measured] = measure(retriever, questions)
    assert measured.figures["recall_1"] == 1.0


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("{", "line 2: is no JSON"),
        ("[1]", "question: must be a text"),
        ('{"question": " ", "source": "a"}', "question: must be a text"),
        ('{"question": "a"}', "source: must be a document's name"),
        ('{"question": "a", "source": {"document": "b", "start": 3}}', "start = 3, end = None"),
        ('{"question": "a", "source": {"document": "b", "start": 3, "end": 3}}', "the first one smaller"),
        ('{"question": "a", "source": {"document": "b", "start": true, "end": 3}}', "must be two numbers"),
    ],
)
def test_rows_that_are_no_questions_are_named(tmp_path, row, fault):
    good = json.dumps(Question("q", "a", "doc", 1, 2).to_json())
    (tmp_path / "questions.jsonl").write_text(f"{good}\n{row}\n")
    with pytest.raises(AvaError, match=fault):
        read_questions(tmp_path / "questions.jsonl")


def test_questions_are_read_as_they_were_written(tmp_path):
    questions = [Question("q", "a", "doc", 1, 2), Question("r", "", "doc")]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(question.to_json())}\n\n" for question in questions))
    assert read_questions(path) == questions
    path.write_text("\n")
    with pytest.raises(AvaError, match="holds no question"):
        read_questions(path)
    with pytest.raises(AvaError, match="No such file"):
        read_questions(tmp_path / "none.jsonl")
