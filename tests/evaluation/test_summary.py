"""summary.md, read with a Markdown parser."""

import json

from markdown_it import MarkdownIt
from markdown_it.token import Token

from ava_core.evaluation.summary import STRATEGY, _fenced


def parse(text: str) -> list[Token]:
    return MarkdownIt("commonmark", {"html": False}).enable("table").parse(text)


def test_summary_has_the_figures_in_a_table_and_the_samples_as_they_are(evaluated):
    tokens = parse((evaluated.output / "summary.md").read_text())
    cells = [token.content for token in tokens if token.type == "inline"]
    assert cells[0] == f"{evaluated.metrics['test_bits_per_byte']:.4f} bits per byte"
    position = cells.index("bits per byte `test_bits_per_byte`")
    assert cells[position + 1] == f"{evaluated.metrics['test_bits_per_byte']:.4f}"
    samples = json.loads((evaluated.output / "evaluation.json").read_text())["samples"]
    texts = [item["text"] + "\n" for item in samples if item["strategy"] == STRATEGY]
    assert [token.content for token in tokens if token.type == "fence"] == texts


def test_summary_has_a_column_for_each_model(run_evaluation, tiny_int8, tmp_path):
    both = run_evaluation(tmp_path, quantized=[tiny_int8])
    tokens = parse((both.output / "summary.md").read_text())
    header = [tokens[index + 1].content for index, token in enumerate(tokens) if token.type == "th_open"]
    assert header == ["figure", "float", "int8"]


def test_no_text_ends_its_own_block():
    text = "# no heading\n```\n| no | table |\n````\n<script>"
    (token,) = parse(_fenced(text))
    assert (token.type, token.content) == ("fence", text + "\n")
