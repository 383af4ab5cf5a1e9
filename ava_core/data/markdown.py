"""Markdown to plain text, by CommonMark's own rules: markdown-it-py parses, the words and line ends stay.

Two readings go beyond CommonMark, for the scripts of plays: a bold line that opens a paragraph is the speaker's name
and is written in capitals; an emphasis mark that was left without its partner is dropped.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

UNPAIRED = re.compile(r"(?<!\w)_+(?=[\w\[])|(?<=[\w\]])_+(?!\w)|(?<!\S)_+(?!\S)")
"""Underscores at the edge of a word: emphasis that opens or closes nothing. `snake_case` is not touched."""
TAG = re.compile(r"<!--.*?-->|</?[A-Za-z][^>]*>", re.DOTALL)


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def render_markdown(text: str) -> tuple[str, Counter[str]]:
    """The text of a Markdown document without its marks, and how many marks of each kind went.

    Blocks are separated by one blank line; hard breaks end a line, soft breaks are spaces; list items keep a dash or
    their number; code keeps its lines; links and images keep their words.
    """
    marks: Counter[str] = Counter()
    blocks: list[str] = []
    lists: list[int | None] = []
    item = ""
    row: list[str] | None = None
    for token in _parser().parse(text):
        match token.type:
            case "bullet_list_open":
                lists.append(None)
            case "ordered_list_open":
                lists.append(int(token.attrGet("start") or 1))
            case "bullet_list_close" | "ordered_list_close":
                lists.pop()
            case "list_item_open":
                number = lists[-1]
                item = "- " if number is None else f"{number}. "
                lists[-1] = None if number is None else number + 1
                marks["list_item"] += 1
            case "tr_open":
                row = []
            case "tr_close":
                blocks.append("\t".join(row or []))
                row = None
            case "heading_open":
                marks["heading"] += 1
            case "code_block" | "fence":
                marks["code_block"] += 1
                blocks.append(token.content.rstrip("\n"))
            case "html_block":
                marks["html"] += 1
                blocks.append(TAG.sub("", token.content).strip())
            case "inline":
                rendered = _render_inline(token.children or [], marks)
                if row is not None:
                    row.append(rendered)
                else:
                    blocks.append(item + rendered)
                    item = ""
    return "\n\n".join(block for block in blocks if block.strip()) + "\n", marks


def _render_inline(tokens: list[Token], marks: Counter[str]) -> str:
    parts: list[str] = []
    # The parser leaves empty texts where emphasis begins and ends.
    tokens = [token for token in tokens if token.type != "text" or token.content]
    speaker = _opens_with_speaker(tokens)
    for index, token in enumerate(tokens):
        match token.type:
            case "text":
                words, dropped = UNPAIRED.subn("", token.content) if "_" in token.content else (token.content, 0)
                marks["unpaired_emphasis"] += dropped
                if speaker and index == 1 and words != words.upper():
                    marks["speaker_capitals"] += 1
                    words = words.upper()
                parts.append(words)
            case "softbreak":
                marks["soft_break"] += 1
                # The speaker's name stays on its own line even where the edition forgot the hard break.
                parts.append("\n" if speaker and index == 3 else " ")
            case "hardbreak":
                marks["hard_break"] += 1
                parts.append("\n")
            case "em_open" | "strong_open" | "s_open":
                marks["emphasis"] += 1
            case "code_inline":
                marks["code"] += 1
                parts.append(token.content)
            case "link_open":
                marks["link"] += 1
            case "image":
                marks["image"] += 1
                parts.append(token.content)
            case "html_inline":
                marks["html"] += 1
    return "".join(parts)


def _opens_with_speaker(tokens: list[Token]) -> bool:
    """Whether a paragraph begins with a line that is bold as a whole, and goes on."""
    kinds = [token.type for token in tokens[:4]]
    return kinds in (
        ["strong_open", "text", "strong_close", "hardbreak"],
        ["strong_open", "text", "strong_close", "softbreak"],
    )
