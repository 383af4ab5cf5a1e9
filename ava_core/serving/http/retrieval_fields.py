"""Requests to an index as typed models: the extra field `retrieval`, /v1/search, and OpenAI's /v1/embeddings.

https://platform.openai.com/docs/api-reference/embeddings/create. Unknown fields are refused. Null is the same as
absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from ava_core.retrieval.folder import Mode
from ava_core.retrieval.retriever import MAX_RESULTS
from ava_core.serving.http.neutral import Fields

MAX_PLACED = 100
"""Passages that are looked up for a prompt. More never fit."""
MAX_LABELS = 64
MAX_INPUTS = 2048
"""OpenAI's, for embeddings."""
MAX_CHARACTERS = 2**15
"""Of one text that is to be embedded; no passage is longer."""

Label = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _listed_texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
        raise ValueError("must be a string or a list of strings, not empty: token ids aren't taken")
    if len(texts) > MAX_INPUTS:
        raise ValueError(f"holds {len(texts):,} texts: at most {MAX_INPUTS:,}: send the others in another request")
    for number, text in enumerate(texts):
        if not text:
            raise ValueError(f"text {number} is empty")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"text {number} has {len(text):,} characters: at most {MAX_CHARACTERS:,}: split it")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text {number} isn't valid Unicode at character {error.start}") from error
    return texts


class Searching(Fields):
    """How an index is searched.

    Attributes:
        mode: None: both ways, if the index has both.
        labels: of the labels that the caller's key has, those to search with; None: all of them.
    """

    mode: Mode | None = None
    labels: Annotated[list[Label], Field(max_length=MAX_LABELS)] | None = None


class RetrievalOptions(Searching):
    """The field `retrieval` of completions and chat completions."""

    top_k: Annotated[int, Field(ge=1, le=MAX_PLACED)] = 4


class SearchRequest(Searching):
    """POST /v1/search."""

    query: str
    top_k: Annotated[int, Field(ge=1, le=MAX_RESULTS)] = 5


class EmbeddingRequest(Fields):
    """POST /v1/embeddings."""

    model: str
    input: Annotated[list[str], BeforeValidator(_listed_texts)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    """Only the index's own: its vectors aren't cut."""
    user: str = ""
