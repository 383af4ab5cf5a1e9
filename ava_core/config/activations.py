"""Activation memory: what a training keeps of one micro-batch for its backward pass, and the peak of it.

Pure arithmetic. From the configuration alone `layer_memory` says what a layer keeps, as counted tensor by tensor with
`torch.autograd.graph.saved_tensors_hooks`; a training measures that (`ava_core.training.memory.measure`). Everything
after it, `LayerMemory.peak` and the head's part, is the same for both.
"""

from __future__ import annotations

from dataclasses import dataclass

from ava_core.config.attention import KEPT_PROBABILITIES
from ava_core.config.model import ModelConfig
from ava_core.config.parameters import head_dim
from ava_core.config.precision import FLOAT32, WIDTHS
from ava_core.config.routing import max_slots, num_logits
from ava_core.config.train import TrainConfig

LOGITS_CHUNK = 1024
"""Tokens whose logits exist at once, as in `ava_core.losses.chunked`."""


@dataclass(frozen=True, kw_only=True)
class LayerMemory:
    """What layers keep of one micro-batch for the backward pass, in bytes.

    Attributes:
        saved: of each layer, if its activations are stored.
        kept: of each layer, if they are recomputed (gradient checkpointing): its input, the logits of the previous
            layer's router, and its routing.
        outside: what the embedding, the last norm and the loss keep.
        largest: the largest tensor among those of each layer, as the attention probabilities of short sequences, of
            which the backward pass of their softmax holds two gradients at once.
    """

    saved: tuple[int, ...]
    kept: tuple[int, ...]
    outside: int
    largest: tuple[int, ...] = ()

    def peak(self, recomputed: int, head: int) -> int:
        """The most that exists at once if the first `recomputed` layers recompute.

        Either at the head's loss, or in the backward pass of some layer: what it and those before it keep, what it
        recomputes, and gradients inside it: about as many as what it saves, and that of the largest tensor twice.
        """
        held = [
            kept if i < recomputed else saved for i, (kept, saved) in enumerate(zip(self.kept, self.saved, strict=True))
        ]
        largest = self.largest or (0,) * len(self.saved)
        inside = [(2 if i < recomputed else 1) * saved + largest[i] for i, saved in enumerate(self.saved)]
        before = backward = 0
        for size, more in zip(held, inside, strict=True):
            before += size
            backward = max(backward, before + more)
        return self.outside + max(before + head, backward)


def layer_memory(model: ModelConfig, train: TrainConfig, vocab_size: int, kernels: str) -> LayerMemory:
    """What the layers of a configured model keep.

    Args:
        model: the architecture.
        train: micro-batch, context, precision and loss.
        vocab_size: entries of the tokenizer.
        kernels: what computes; see `ava_core.config.hardware.kernels_path`.
    """
    tokens, layers = train.micro_batch_size * train.sequence_length, model.num_layers
    probabilities = _probabilities(model, train, kernels)
    saved = tokens * _saved_per_token(model, train, kernels) + probabilities
    residual_stream = WIDTHS[train.precision] * model.hidden_size
    slots = max_slots(model)
    kept = tokens * (residual_stream + FLOAT32 * num_logits(model) + 10 * slots)  # int64 and two bool of each slot
    rows = tokens * _rows_per_token(model)
    widest = WIDTHS[train.precision] * max(rows * 2 * model.expert_intermediate_size, tokens * model.hidden_size)
    heads = train.loss.multi_token_depth if train.loss.multi_token_weight else 0
    return LayerMemory(
        saved=(int(saved),) * layers,
        kept=(kept,) * layers,
        # The last norm's input, and where it isn't Ava's own in float32, with its output.
        outside=tokens * (residual_stream if _has_kernels(train, kernels) else 2 * FLOAT32 * model.hidden_size)
        + loss_bytes(train, model.hidden_size, vocab_size, heads),
        largest=(int(max(probabilities, widest)),) * layers,
    )


def loss_bytes(train: TrainConfig, width: int, vocab_size: int, prediction_heads: int = 0) -> int:
    """Bytes that the losses of the head and of each multi-token prediction head keep: gradients of hidden states and
    weights, which the forward pass already takes.
    """
    hidden = train.micro_batch_size * train.sequence_length * width * WIDTHS[train.precision]
    # A prediction head keeps its product and that one's SiLU beside the gradient; the trunk's output is one for all.
    return (1 + prediction_heads) * (hidden + FLOAT32 * width * vocab_size) + 2 * prediction_heads * hidden


def head_bytes(train: TrainConfig, width: int, vocab_size: int, kernels: str) -> int:
    """Bytes of the temporaries of the head's loss on one chunk of `LOGITS_CHUNK` tokens: logits, their gradient and
    what is between, and the float32 product that is added to the weight's gradient.
    """
    tokens = min(train.micro_batch_size * train.sequence_length, LOGITS_CHUNK)
    per_logit = 2 * FLOAT32 if _has_kernels(train, kernels) else 4 * FLOAT32
    if train.teacher.model is not None:  # the divergence from it holds two more of them, and the kernels know none
        per_logit = 6 * FLOAT32
    return tokens * vocab_size * per_logit + FLOAT32 * width * vocab_size


def _has_kernels(train: TrainConfig, kernels: str) -> bool:
    """Whether norms, rotation, routers and the head's loss are Ava's kernels."""
    return train.precision == "bf16" and kernels in ("native", "onednn")


def _rows_per_token(model: ModelConfig) -> float:
    """Rows that FFN experts compute, per token: (token, expert) pairs, with even routing over all experts."""
    return max_slots(model) * model.num_ffn_experts / model.num_experts


def _probabilities(model: ModelConfig, train: TrainConfig, kernels: str) -> int:
    """Of attention by explicit products: softmax(Q K^T) of all heads.

    A CPU does so in bfloat16 wherever its own kernels don't pay (`ava_core.models.attention.attend`).
    """
    explicit = train.precision == "bf16" and kernels in ("onednn", "off")
    if not explicit or train.sequence_length > KEPT_PROBABILITIES:
        return 0
    return WIDTHS["bf16"] * train.micro_batch_size * model.num_attention_heads * train.sequence_length**2


def _saved_per_token(model: ModelConfig, train: TrainConfig, kernels: str) -> float:
    """Bytes per token and layer without attention's probabilities; D is the width of the residual stream, H and G
    those of all query heads and of all key/value heads.
    """
    D, low = model.hidden_size, WIDTHS[train.precision]
    H, G = (count * head_dim(model) for count in (model.num_attention_heads, model.num_key_value_heads))
    F, shared, rows = model.expert_intermediate_size, model.num_shared_experts, _rows_per_token(model)
    # Logits, probabilities and gate values of all experts; of each slot its number, row, weight and flags.
    router = 3 * FLOAT32 * num_logits(model) + 45 * max_slots(model)
    mixed = model.num_copy_experts + model.num_constant_experts > 0
    # Of the shared experts gate and up, silu(gate), and their product.
    experts = low * shared * 4 * F
    if _has_kernels(train, kernels):
        # Both norms: input and output. The heads' norm: its input; it rotates in the same pass.
        norms = low * (4 * D + (H + G))
        if kernels == "native":
            # Queries, keys, values, output and the output for the last projection; gate and up of the experts.
            return norms + low * (3 * H + 2 * G) + low * rows * 2 * F + experts + router
        # Queries, keys, values and output; rows in and out, gate and up, silu(gate), and their product.
        exact = FLOAT32 * D if mixed else 0
        return norms + low * 2 * (H + G) + low * rows * (2 * D + 4 * F) + exact + experts + router
    # Input and output of both norms, the gate's input; in and out of the norms of queries and keys.
    exact = FLOAT32 * ((6 if mixed else 5) * D + (2 * (H + G) if model.qk_norm != "none" else 0))
    if low == FLOAT32:  # what is float32 already isn't kept twice
        exact = FLOAT32 * (4 * D + 2 * (H + G))
    # The input of the projections; heads of queries, keys, values and output.
    attention = low * (2 * D + 2 * (H + G))
    return exact + attention + low * rows * (2 * D + 4 * F) + experts + router
