"""Opens an embedding by its name."""

from __future__ import annotations

from pathlib import Path

from ava_core.config.embedding import EmbeddingName, HttpEmbedding
from ava_core.errors import ConfigError
from ava_core.retrieval.embedding.embedder import Embedder


def open_embedder(name: EmbeddingName, http: HttpEmbedding, model: Path | None, threads: int = 0) -> Embedder | None:
    """The embedding of that name; None for `none`.

    Args:
        name: `retrieval.embedding`.
        http: `retrieval.http`, for `http`.
        model: folder of the model, for `model`.
        threads: of what computes here; 0: as many as it likes.

    Raises:
        ConfigError: `model` without a folder, or a folder without `model`.
        AvaError: it can't be opened.
    """
    if model is not None and name != "model":
        raise ConfigError(f"--model {model}: retrieval.embedding = {name}: needs none: leave it out")
    if name == "minilm":
        from ava_core.retrieval.embedding.minilm import MiniLM

        return MiniLM.open(threads)
    if name == "model":
        if model is None:
            raise ConfigError("retrieval.embedding = model: give its folder with --model, or choose another embedding")
        from ava_core.retrieval.embedding.own_model import OwnModel

        return OwnModel.open(model, threads)
    if name == "http":
        from ava_core.retrieval.embedding.http import HttpServer

        return HttpServer(http)
    return None
