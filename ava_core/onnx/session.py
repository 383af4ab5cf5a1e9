"""The fused graph on ONNX Runtime, with a KV cache that is updated in place (past and present share memory).

    session = DecoderSession.load(Path("out/int8"))
    cache = session.cache(rows=1, capacity=64)
    logits_BV = session.run(prompt_BS, cache)                # prefill
    logits_BV = session.run(logits_BV.argmax(-1)[:, None], cache)   # a token more

Shapes: see `ava_core.models.shapes`; here C is the cache's capacity in positions per row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime

from ava_core.errors import AvaError, IntegrityError
from ava_core.onnx.loading import graph_kind, hidden_output, load_graph
from ava_core.onnx.providers import CUDA
from ava_core.onnx.shape import GRAPH_FILE, SHAPE, DecoderShape


class KVCache:
    """Keys and values of some rows, float32, each layer's (rows, G, C, A). Made by `DecoderSession.cache`.

    Attributes:
        lengths: (rows,) int64, tokens that each row holds; the caller may lower them.
    """

    def __init__(self, buffers: list[np.ndarray]) -> None:
        self.buffers = buffers
        self.rows, _, self.capacity, _ = buffers[0].shape
        self.lengths = np.zeros(self.rows, np.int64)
        self.bindings: dict[tuple[int, int, bool], _Step] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def move(self, source: int, target: int) -> None:
        """Overwrite row `target` with row `source`."""
        if source != target:
            length = int(self.lengths[source])
            for buffer in self.buffers:
                buffer[target, :, :length] = buffer[source, :, :length]
            self.lengths[target] = length


@dataclass
class Experts:
    """What the routers of one pass gave.

    Attributes:
        logits: (L, B, S, E), float32.
        weights: (L, B, S, E), float32: gate values of the chosen experts, 0 for the others.
    """

    logits: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


class DecoderSession:
    """A decoder made by `ava quantize`. One thread may use it at a time.

    Attributes:
        shape: its sizes.
        on_gpu: whether nodes of the graph may run there; what is bound is in the CPU's memory all the same.
        hidden: name of the output with the hidden states that the head reads; empty without it.

    Raises:
        IntegrityError: the graph doesn't say them.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.hidden = hidden_output(session)
        try:
            self.shape = DecoderShape.from_json(session.get_modelmeta().custom_metadata_map[SHAPE])
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"{GRAPH_FILE}: its metadata can't be read: run `ava quantize` again") from error
        self.on_gpu = CUDA in session.get_providers()
        layers = range(self.shape.num_layers)
        self._parts = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]

    @classmethod
    def load(cls, folder: Path, threads: int = 0) -> DecoderSession:
        """Load the output of `ava quantize`.

        Args:
            folder: holds model.onnx, model.onnx.data and config.json.
            threads: CPU threads; 0: as many as ONNX Runtime chooses.

        Raises:
            AvaError: a file is missing, or the graph is the portable one.
            IntegrityError: a file is damaged.
        """
        session = load_graph(Path(folder), threads)
        if graph_kind(session) != "fused":
            raise AvaError(
                f"{folder / GRAPH_FILE}: is the portable graph, which has no cache in place: run `ava quantize` with"
                " quantize.portable = false"
            )
        return cls(session)

    def cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for `rows` sequences of up to `capacity` tokens.

        Raises:
            ValueError: the capacity is beyond what the model's rotary positions reach.
        """
        limit = self.shape.max_position_embeddings
        if not 0 < capacity <= limit:
            raise ValueError(f"capacity = {capacity}: must be in 1 .. {limit}")
        shape = (rows, self.shape.num_key_value_heads, capacity, self.shape.head_dim)
        return KVCache([np.zeros(shape, np.float32) for _ in self._parts])

    def run(
        self,
        tokens_BS: np.ndarray,
        cache: KVCache,
        *,
        first_row: int = 0,
        new_tokens_B: np.ndarray | None = None,
        all_logits: bool = False,
        experts: Experts | None = None,
        hidden: list[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Append tokens to rows first_row .. first_row + B - 1 of the cache.

        Args:
            tokens_BS: int64, padded on the right.
            cache: of this session; its lengths grow.
            first_row: row of the cache that tokens_BS[0] belongs to.
            new_tokens_B: how many of a row's tokens count, all S if it is left out; each at least 1.
            all_logits: of every token instead of each row's last.
            experts: takes the routers' logits and gate values.
            hidden: takes the hidden states that the logits are made of, float32 (B or B * S, D); for a session of
                `load_graph(..., hidden=True)`.

        Returns:
            Logits, float32: (B, V), or (B, S, V) where those of padding mean nothing. The next call with as many rows
            and tokens may overwrite them.

        Raises:
            ValueError: the rows or tokens are more than the cache has room for.
        """
        (B, S), rows = tokens_BS.shape, slice(first_row, first_row + tokens_BS.shape[0])
        new_B = np.full(B, S) if new_tokens_B is None else new_tokens_B
        total_B = cache.lengths[rows] + new_B
        if first_row + B > cache.rows or total_B.max(initial=0) > cache.capacity:
            raise ValueError(
                f"tokens up to position {total_B.max(initial=0)} of rows {first_row} to {first_row + B - 1}: the cache"
                f" holds {cache.rows} rows of {cache.capacity} tokens"
            )
        if S == 1 and not all_logits and hidden is None:
            key = (first_row, B, experts is not None)
            if key not in cache.bindings:
                cache.bindings[key] = _Step(self, cache, first_row, B, experts=None if experts is None else Experts())
            step = cache.bindings[key]
        else:
            step = _Step(self, cache, first_row, B, S, all_logits, experts, hidden)
        logits = step.run(tokens_BS, new_B, total_B)
        if experts is not None and step.experts is not None and experts is not step.experts:
            experts.logits, experts.weights = step.experts.logits.copy(), step.experts.weights.copy()
        if hidden is not None:
            hidden.append(step.hidden())
        cache.lengths[rows] = total_B
        return logits.reshape(B, S, -1) if all_logits else logits


class _Step:
    """IOBinding and buffers of a pass over B rows of S tokens.

    Decoding reuses one for all its tokens: binding anew costs more than the small nodes of a pass. With a GPU inputs
    are bound anew all the same: what it reads is copied to it when it is bound, and not again before a pass.
    """

    def __init__(
        self,
        decoder: DecoderSession,
        cache: KVCache,
        first_row: int,
        B: int,
        S: int = 1,
        all_logits: bool = False,
        experts: Experts | None = None,
        hidden: list[np.ndarray] | None = None,
    ) -> None:
        wanted = B * S if all_logits else B
        self.session, self.all_logits = decoder.session, all_logits
        self.tokens = np.zeros((B, S), np.int64)
        self.query_lengths, self.last_positions = np.zeros(B, np.int32), np.zeros(B, np.int32)
        self.total_length = np.zeros((), np.int32)
        self.indices = np.arange(wanted, dtype=np.int64)
        self.first_B = np.arange(B) * S
        self.logits = np.zeros((wanted, decoder.shape.vocab_size), np.float32)
        self.binding = decoder.session.io_binding()
        self.inputs: dict[str, np.ndarray] = {
            "input_ids": self.tokens,
            "query_lengths": self.query_lengths,
            "last_positions": self.last_positions,
            "total_length": self.total_length,
            "logit_indices": self.indices,
        }
        self._bind(self.binding.bind_output, "logits", self.logits)
        for part, buffer in zip(decoder._parts, cache.buffers, strict=True):
            rows = buffer[first_row : first_row + B]
            self.inputs[f"past_key_values.{part}"] = rows
            self._bind(self.binding.bind_output, f"present.{part}", rows)
        self.copied = decoder.on_gpu
        if not self.copied:
            self._bind_inputs()
        self.experts, self.hidden_index = experts, None
        if hidden is not None:
            self.binding.bind_output(decoder.hidden, "cpu")
            self.hidden_index = 1 + len(decoder._parts)
        if experts is not None:
            L, E = decoder.shape.num_layers, decoder.shape.num_experts
            experts.logits, experts.weights = np.zeros((L, B, S, E), np.float32), np.zeros((L, B, S, E), np.float32)
            for layer, (logits, weights) in enumerate(decoder.shape.router_outputs):
                self._bind(self.binding.bind_output, logits, experts.logits[layer])
                self._bind(self.binding.bind_output, weights, experts.weights[layer])

    def hidden(self) -> np.ndarray:
        return self.binding.get_outputs()[self.hidden_index].numpy()

    def _bind_inputs(self) -> None:
        for name, array in self.inputs.items():
            self._bind(self.binding.bind_input, name, array)

    @staticmethod
    def _bind(bind, name: str, array: np.ndarray) -> None:
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self, tokens_BS: np.ndarray, new_B: np.ndarray, total_B: np.ndarray) -> np.ndarray:
        self.tokens[:] = tokens_BS
        self.query_lengths[:] = new_B
        self.last_positions[:] = total_B - 1
        self.total_length[...] = total_B.max()
        if not self.all_logits:
            self.indices[:] = self.first_B + new_B - 1
        if self.copied:
            self._bind_inputs()
            self.binding.synchronize_inputs()
        self.session.run_with_iobinding(self.binding)
        if self.copied:
            self.binding.synchronize_outputs()
        return self.logits
