"""A model's vocabulary made to fit a tokenizer that has more entries than the one it was trained with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@torch.no_grad()
def grow_vocabulary(
    model: PreTrainedModel, vocab_size: int, *, boundary_token_id: int, pad_token_id: int | None
) -> int:
    """Give `model` rows for entries appended to its tokenizer, and the special tokens of the text that it goes on with.

    Every new row of the embedding, and of the output projection where that is a matrix of its own, is the mean of those
    that were there: a new entry's logit is then the mean of the others', so it takes no more than its share of the
    probability and the old ones keep theirs (Hewitt 2021, "Initializing new word embeddings for pretrained language
    models"). Nothing random is drawn, so all ranks and all runs get the same rows. To be called before the optimiser
    is built and before weights are cut up by ZeRO.

    Args:
        model: any model of Transformers', with the ids of its old tokenizer unchanged in the new one
            (`ava_core.data.tokenizer_identity.require_extension`).
        vocab_size: entries of the new tokenizer, the largest id and one. Fewer than the model has rows, as where a
            matrix was padded, leave it as it is.
        boundary_token_id: the token that ends, and so begins, every document.
        pad_token_id: fills up batches; its row is never trained.

    Returns:
        Rows that were added.

    Raises:
        ValueError: a special token is no entry.
    """
    for name, token in (("boundary_token_id", boundary_token_id), ("pad_token_id", pad_token_id)):
        if token is not None and not 0 <= token < vocab_size:
            raise ValueError(f"{name} = {token}: must be an entry, less than vocab_size = {vocab_size}")
    before = _rows(model.get_input_embeddings()).shape[0]
    if vocab_size > before:
        with torch.random.fork_rng(devices=[]):  # new rows are drawn before they are set
            model.resize_token_embeddings(vocab_size, mean_resizing=False)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None:
                rows = _rows(layer)
                rows[before:] = rows[:before].float().mean(dim=0).to(rows.dtype)
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        embedding.padding_idx = pad_token_id
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.bos_token_id = config.eos_token_id = boundary_token_id
            config.pad_token_id = pad_token_id
    return max(0, vocab_size - before)


def _rows(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
