"""Decoding one batch: Transformers' search or one of our own, with our filters, draws, constraints and stops."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig as DecodingConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ava_core.config.generation import GenerationConfig
from ava_core.generation.constraints import Constraint, Guide
from ava_core.generation.contrastive import TOP_K, contrastive_search
from ava_core.generation.diverse_beams import diverse_beam_search
from ava_core.generation.kept_cache import KeptCache
from ava_core.generation.sampling import SeededDraw, history_processors, sampling_filters
from ava_core.generation.stopping import GuidedLogits, GuidedRows, GuidedStop, NewStopStrings
from ava_core.generation.strategies import SAMPLED
from ava_core.generation.text_stream import TextStream

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Continuation:
    """A text that follows a prompt.

    Attributes:
        text: without special tokens and stop strings.
        cut: it ended at `max_new_tokens`, and at nothing else.
    """

    text: str
    cut: bool


@dataclass(frozen=True)
class Decoder:
    """Continues batches of prompts."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    strategy: str
    settings: GenerationConfig
    constraint: Constraint | None
    each: int
    """Texts of each row, for beam search."""
    ends: tuple[int, ...] = ()
    """Tokens that end a text beside the end of a document."""
    kept: KeptCache | None = None
    """Of the only row. Searches of our own read it anew: contrastive search needs the hidden states of all tokens."""

    def decode(self, token_ids: list[list[int]], seeds: list[int], streamer: BaseStreamer | None) -> list[Continuation]:
        """Continuations of one batch; `seeds` has one for each row."""
        tokenizer, settings = self.tokenizer, self.settings
        batch = tokenizer.pad({"input_ids": token_ids}, padding_side="left", return_tensors="pt").to(self.model.device)
        length = batch["input_ids"].shape[1]
        processors = history_processors(settings, length, self._all_ends, tokenizer.pad_token_id)
        criteria = StoppingCriteriaList()
        guide = None
        if self.constraint is not None:
            guide = Guide(self.constraint, tokenizer, self.model.config.vocab_size)
            guides = GuidedRows(guide, length)
            processors.append(GuidedLogits(guides))
            criteria.append(GuidedStop(guides))
        processors += sampling_filters(self.strategy, settings)
        if self.strategy in SAMPLED:
            processors.append(SeededDraw(seeds))
        if settings.stop:
            criteria.append(NewStopStrings(tokenizer, settings.stop, length))
        # Not inference_mode: weights that DeepSpeed gathers for the pass of a model in training couldn't be trained on.
        with torch.no_grad():
            sequences = self._search(batch, processors, criteria, streamer)
        continuations = sequences[:, length:].tolist()
        if guide is not None:
            _warn_of_unfinished(guide, continuations)
        return [self._continuation(tokens) for tokens in continuations]

    @property
    def _all_ends(self) -> list[int]:
        return [self.tokenizer.eos_token_id, *self.ends]

    def _continuation(self, tokens: list[int]) -> Continuation:
        stream = TextStream(self.tokenizer, self.settings.stop)
        text = "".join([*map(stream.push, tokens), stream.flush()])
        ended = stream.stopped or not set(self._all_ends).isdisjoint(tokens)
        return Continuation(text, cut=not ended and len(tokens) >= self.settings.max_new_tokens)

    def _search(self, batch: Any, processors: Any, criteria: Any, streamer: BaseStreamer | None) -> Tensor:
        """Token ids, of the prompts and what follows; Transformers' search where it has one."""
        settings = self.settings
        given = {
            "processors": processors,
            "criteria": criteria,
            "max_new_tokens": settings.max_new_tokens,
            "ends": self._all_ends,
            "padding": self.tokenizer.pad_token_id,
        }
        if self.strategy == "contrastive":
            if self.kept is not None:
                self.kept.forget()
            return contrastive_search(
                self.model,
                batch,
                penalty_alpha=settings.penalty_alpha,
                top_k=settings.top_k or TOP_K,
                streamer=streamer,
                **given,
            )
        if self.strategy == "beam" and settings.num_beam_groups > 1:
            return diverse_beam_search(
                self.model,
                batch,
                num_beams=settings.num_beams,
                num_beam_groups=settings.num_beam_groups,
                diversity_penalty=settings.diversity_penalty,
                length_penalty=settings.length_penalty,
                num_return_sequences=self.each,
                **given,
            )
        found = cast(Any, self.model).generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=self._config(),
            logits_processor=processors,
            stopping_criteria=criteria,
            streamer=streamer,
            **self._read_before(batch["input_ids"]),
        )
        if self.kept is not None:
            self.kept.keep(found.sequences[0].tolist(), found.past_key_values)
        return found.sequences

    def _read_before(self, input_ids_BS: Tensor) -> dict[str, Any]:
        cache = self.kept.begin(input_ids_BS[0].tolist()) if self.kept is not None else None
        return {} if cache is None else {"past_key_values": cache}

    def _config(self) -> DecodingConfig:
        """Leaves nothing to the folder's generation_config.json; filters of logits are in the processors."""
        settings, tokenizer = self.settings, self.tokenizer
        beams: dict[str, Any] = {"num_beams": 1}
        if self.strategy == "beam":
            beams = {
                "num_beams": settings.num_beams,
                "early_stopping": False,
                "length_penalty": settings.length_penalty,
                "num_return_sequences": self.each,
            }
        return DecodingConfig(
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=self._all_ends,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
            return_dict_in_generate=True,
            **beams,
        )


def _warn_of_unfinished(guide: Guide, continuations: list[list[int]]) -> None:
    cut = sum(not guide.finds_whole(tokens) for tokens in continuations)
    if cut:
        log.warning(
            "%d of %d texts ended at max_new_tokens before they were what they must be: allow more",
            cut,
            len(continuations),
        )
