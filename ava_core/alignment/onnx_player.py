"""A model in training that answers prompts by Ava's own decoder: its present weights, rounded, as a graph in memory.

The operators for rounded weights pack them when a session is made, and skip that work at each token; so a session is
made of the present weights for each rollout, without a file: some tenths of a second for millions of them. What the
rounded model gives a token is noted, and the objective corrects for it. Shapes: see `rollout_batch`; U = different
prompts, E = experts, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ava_core.alignment.rollout_batch import RolloutBatch, batch_of
from ava_core.alignment.sampling import left_padded, padding_of, stops_of
from ava_core.config.grpo import GrpoConfig
from ava_core.errors import AvaError, ConfigError
from ava_core.models.routing import Routes
from ava_core.onnx.in_memory import decoder_of
from ava_core.onnx.session import DecoderSession, Experts, KVCache
from ava_core.quantization.blockwise import quantize_blocks
from ava_core.quantization.plan import formats, groups_of

BITS = 8
"""Of each weight of a matrix."""
ROUNDED_ACTIVATIONS = 4
"""`accuracy_level` of the graph: the faster of its ways, whose rounding is corrected for like that of the weights."""


@dataclass
class OnnxPlayer:
    """As `ava_core.alignment.player.Player`.

    Attributes:
        model: of ours, on any device; left in evaluation mode.
        ends: tokens at which an answer ends.
        config: the training's section.

    Raises:
        ConfigError: the graph can't have such a model.
    """

    model: Any
    ends: Sequence[int]
    config: GrpoConfig

    def __post_init__(self) -> None:
        try:
            self.decoder()
        except AvaError as error:
            raise ConfigError(f"grpo.rollout = onnx: {error}; or set grpo.rollout = generate") from error

    @torch.no_grad()
    def decoder(self) -> DecoderSession:
        """Of the model's present weights."""
        weights = dict(self.model.named_parameters())
        rounded = {
            name: quantize_blocks(weights[name].detach().float().cpu().numpy(), form.bits, form.block_size)
            for group in groups_of(self.model)
            for form in formats(group, f"int{BITS}", None)
            if form.bits == BITS
            for name in group.matrices
        }
        return decoder_of(self.model, rounded, torch.get_num_threads(), ROUNDED_ACTIVATIONS)

    @torch.no_grad()
    def play(self, prompts: Sequence[Sequence[int]], width: int, seed: int) -> RolloutBatch:
        """As `Answering.play`."""
        model = self.model.eval()
        stops = stops_of(model, self.ends)
        game = _Game(self.decoder(), prompts, stops, self.config, seed)
        game.play()
        length = max(map(len, game.answers))
        device, asked = model.device, left_padded(model, prompts, width)
        drawn = torch.full((len(prompts), length), padding_of(model))
        noted = torch.zeros((len(prompts), length))
        for row, (answer, log_probs) in enumerate(zip(game.answers, game.log_probs, strict=True)):
            drawn[row, : len(answer)], noted[row, : len(answer)] = torch.tensor(answer), torch.tensor(log_probs)
        sequences = torch.cat([asked["input_ids"], drawn.to(device)], dim=1)
        routes = game.routes(width, length, model.config.max_slots) if self.config.replay else ()
        return batch_of(sequences, asked["attention_mask"], noted.to(device), stops, routes)


class _Game:
    """One rollout. Equal prompts are read once; an answer that has ended makes room.

    Attributes:
        answers: tokens of each, the one that ends it included.
        log_probs: of these tokens when they were drawn.
    """

    def __init__(
        self,
        decoder: DecoderSession,
        prompts: Sequence[Sequence[int]],
        stops: Sequence[int],
        config: GrpoConfig,
        seed: int,
    ) -> None:
        self.decoder, self.prompts, self.stops, self.config = decoder, prompts, set(stops), config
        self.generator = np.random.default_rng(seed)
        self.answers: list[list[int]] = [[] for _ in prompts]
        self.log_probs: list[list[float]] = [[] for _ in prompts]
        # Gate values of the tokens that were read, (L, E) each, by row.
        self._gates: list[list[np.ndarray]] = [[] for _ in prompts]

    def play(self) -> None:
        """Answer all prompts."""
        cache, logits_BV = self._read_prompts()
        rows = list(range(len(self.prompts)))  # which answer each row of the cache is of
        while rows:
            tokens = self._draw(logits_BV, rows)
            rows = self._close(cache, rows, tokens)
            if rows:
                experts = Experts() if self.config.replay else None
                last = np.array([[self.answers[row][-1]] for row in rows])
                logits_BV = self.decoder.run(last, cache, experts=experts)
                self._note_gates(rows, experts)

    def _read_prompts(self) -> tuple[KVCache, np.ndarray]:
        """The cache with a row for each prompt, and logits (B, V) of its first answer's token."""
        unique = {tuple(prompt): number for number, prompt in reversed(list(enumerate(self.prompts)))}
        order = {prompt: place for place, prompt in enumerate(unique)}
        places = np.array([order[tuple(prompt)] for prompt in self.prompts])
        lengths = np.array([len(prompt) for prompt in order])
        tokens = np.zeros((len(order), int(lengths.max())), np.int64)
        for place, prompt in enumerate(order):
            tokens[place, : len(prompt)] = prompt
        experts = Experts() if self.config.replay else None
        first = self.decoder.cache(len(order), int(lengths.max()) + self.config.max_new_tokens)
        logits = self.decoder.run(tokens, first, new_tokens_B=lengths, experts=experts).copy()
        cache = KVCache([np.ascontiguousarray(buffer[places]) for buffer in first.buffers])
        cache.lengths[:] = first.lengths[places]
        if experts is not None:
            for row, place in enumerate(places):
                self._gates[row] = [experts.weights[:, place, at].copy() for at in range(lengths[place])]
        return cache, logits[places]

    def _draw(self, logits_BV: np.ndarray, rows: list[int]) -> list[int]:
        """A token for each row. In NumPy, on one thread: PyTorch's would fight with the decoder's at each token."""
        scaled = logits_BV.astype(np.float64) / self.config.temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        sums_BV = np.exp(scaled).cumsum(axis=1)
        totals = sums_BV[:, -1:]
        tokens = (sums_BV <= self.generator.random((len(rows), 1)) * totals).sum(axis=1)
        tokens = np.minimum(tokens, logits_BV.shape[1] - 1)  # if the product was rounded up to the total
        log_probs = np.take_along_axis(scaled, tokens[:, None], axis=1) - np.log(totals)
        for row, token, value in zip(rows, tokens.tolist(), log_probs[:, 0].tolist(), strict=True):
            self.answers[row].append(token)
            self.log_probs[row].append(value)
        return list(tokens.tolist())

    def _close(self, cache: KVCache, rows: list[int], tokens: list[int]) -> list[int]:
        """The rows that go on, at the cache's beginning."""
        going = [
            token not in self.stops and len(self.answers[row]) < self.config.max_new_tokens
            for row, token in zip(rows, tokens, strict=True)
        ]
        kept = [slot for slot, goes_on in enumerate(going) if goes_on]
        free = [slot for slot in range(len(kept)) if not going[slot]]
        moved = {slot: cache_slot for cache_slot, slot in zip(free, [s for s in kept if s >= len(kept)], strict=True)}
        for source, target in moved.items():
            cache.move(source, target)
        found = {moved.get(slot, slot): rows[slot] for slot in kept}
        return [found[slot] for slot in range(len(kept))]

    def _note_gates(self, rows: list[int], experts: Experts | None) -> None:
        if experts is not None:
            for slot, row in enumerate(rows):
                self._gates[row].append(experts.weights[:, slot, 0])

    def routes(self, width: int, length: int, slots: int) -> tuple[Routes, ...]:
        """Per layer, of the W + N - 1 positions that a training pass has; where nothing was read, none is used."""
        shape = self.decoder.shape
        gates = np.zeros((shape.num_layers, len(self.prompts), width + length - 1, shape.num_experts), np.float32)
        for row, (prompt, noted) in enumerate(zip(self.prompts, self._gates, strict=True)):
            start = width - len(prompt)
            kept = noted[: gates.shape[2] - start]
            gates[:, row, start : start + len(kept)] = np.stack(kept, axis=1)
        weights, ids = torch.from_numpy(gates).flatten(1, 2).topk(slots, dim=-1)
        return tuple(
            Routes(expert_ids_TK=ids, used_TK=used, selected_TK=used)
            for ids, used in zip(ids.unbind(), (weights > 0).unbind(), strict=True)
        )
