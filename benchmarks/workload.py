"""What is trained: shapes of the model and of the batch, the same for every subject.

The default is the workload that results are compared on: batch 8 x 256, vocabulary 8192, hidden 384, 6 layers,
8 experts of 768, top-2. `from_preset` takes the shapes of a preset under configs/.
"""

from __future__ import annotations

from dataclasses import dataclass

from ava_core.config import resolve

GPU_LENGTH = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Attributes:
    label: how reports name it.
    device: "cpu" or "cuda".
    batch, length: sequences of a step, and tokens of each.
    hidden_size, layers, heads, key_value_heads, head_dim: the decoder.
    experts, expert_size, experts_per_token: SwiGLU experts of each layer, the width of one, and how many a token has.
    zero_experts, copy_experts, constant_experts: zero-computation experts that the MoE++ subject has besides.
    tau: of the MoE++ subject.
    """

    label: str = "8 x 256"
    device: str = "cpu"
    batch: int = 8
    length: int = 256
    vocab_size: int = 8192
    hidden_size: int = 384
    layers: int = 6
    heads: int = 6
    key_value_heads: int = 6
    head_dim: int = 64
    experts: int = 8
    expert_size: int = 768
    experts_per_token: int = 2
    zero_experts: int = 1
    copy_experts: int = 1
    constant_experts: int = 2
    tau: float = 0.75

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.length

    @property
    def dense_size(self) -> int:
        """Width of the feed-forward network with as many parameters as a token passes in the experts."""
        return self.experts_per_token * self.expert_size

    @property
    def zero_computation_experts(self) -> int:
        """Zero, copy and constant experts together."""
        return self.zero_experts + self.copy_experts + self.constant_experts


def from_preset(name: str, device: str) -> Workload:
    """The shapes of a preset; on a GPU with sequences of `GPU_LENGTH` tokens and as many tokens as its micro-batch.

    Raises:
        ConfigError: there is no such preset.
    """
    config = resolve(overrides=[f"preset={name}"]).config
    model, train = config.model, config.train
    tokens = train.micro_batch_size * train.sequence_length
    length = GPU_LENGTH if device == "cuda" else train.sequence_length
    batch = max(1, tokens // length)
    return Workload(
        label=f"{name}, {batch} x {length}",
        device=device,
        batch=batch,
        length=length,
        vocab_size=config.tokenizer.vocab_size,
        hidden_size=model.hidden_size,
        layers=model.num_layers,
        heads=model.num_attention_heads,
        key_value_heads=model.num_key_value_heads or model.num_attention_heads,
        head_dim=model.head_dim or model.hidden_size // model.num_attention_heads,
        experts=model.num_ffn_experts,
        expert_size=model.expert_intermediate_size,
        experts_per_token=model.num_experts_per_token,
        zero_experts=model.num_zero_experts,
        copy_experts=model.num_copy_experts,
        constant_experts=model.num_constant_experts,
        tau=model.tau,
    )
