"""Upper bounds of sizes: past them a number is a typo, and libraries fail with errors that name no key.

Whether a model within them fits into a machine is what the estimate of its memory says.
"""

from __future__ import annotations

MODEL_SIZES = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "num_layers": 10_000,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "max_position_embeddings": 2**30,
    "num_ffn_experts": 2**16,
    "expert_intermediate_size": 2**24,
    "num_zero_experts": 2**16,
    "num_copy_experts": 2**16,
    "num_constant_experts": 2**16,
    "num_shared_experts": 2**16,
    "num_experts_per_token": 2**18,
    "max_experts_per_token": 2**18,
    "num_expert_groups": 2**18,
    "num_groups_per_token": 2**18,
    "sinkhorn_iterations": 10_000,
    "rope_theta": 1e15,
    "rms_norm_eps": 1e3,
    "initializer_range": 1e9,
    "expert_bias_update_rate": 1e9,
    "capacity_factor": 1e9,
    "balance_loss_weight": 1e9,
    "router_z_loss_weight": 1e9,
    "router_diversity_weight": 1e9,
}
"""By the name that a size has in the configuration and in a model's config.json."""
MAX_TOKENIZER_ENTRIES = 2**20
"""Entries that a tokenizer is trained to: four times the largest in use."""
MAX_THREADS = 1024
"""CPU threads of a process. OpenMP ends a process without a word when it can't start as many as it was told to."""
