"""What gives passages and questions their vectors; a part of the section `retrieval`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ava_core.config.section import Section, Text

EmbeddingName = Literal["minilm", "model", "http", "none"]
"""What gives passages and questions their vectors; each is opened in `ava_core.retrieval.embedding.opening`."""


class HttpEmbedding(Section):
    """A server with OpenAI's /v1/embeddings, for embedding = http."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] = "http://127.0.0.1:8000/v1"
    """Address that `/embeddings` is put behind."""
    model: Text = "default"
    """Name of the model there; another one is another embedding."""
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "AVA_EMBEDDING_KEY"
    """Environment variable that holds the API key; unset: none is sent."""
    batch: Annotated[int, Field(ge=1, le=2048)] = 64
    """Texts of one request."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Longest wait for an answer; a request is tried three times."""
