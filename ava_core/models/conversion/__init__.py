"""Conversion between Ava's model and the mixtures of experts of Transformers, both ways, and from its dense models.

    ours = from_transformers(OlmoeForCausalLM.from_pretrained(folder))
    theirs = to_transformers(ours, "qwen3_moe")
    upcycled = from_transformers(LlamaForCausalLM.from_pretrained(folder), Upcycling(experts=8, experts_per_token=2))

In float32 both models give the same logits. Nothing is approximated: what the other side lacks is refused with a
`ValueError` that names the field, its value and what it would have to be.
"""

from ava_core.models.conversion.configs import config_from_transformers, config_to_transformers
from ava_core.models.conversion.models import from_transformers, parameter_shapes, to_transformers
from ava_core.models.conversion.peers import PEERS, SOURCES, Peer
from ava_core.models.conversion.upcycling import Upcycling, upcycled_config

__all__ = [
    "PEERS",
    "SOURCES",
    "Peer",
    "Upcycling",
    "config_from_transformers",
    "config_to_transformers",
    "from_transformers",
    "parameter_shapes",
    "to_transformers",
    "upcycled_config",
]
