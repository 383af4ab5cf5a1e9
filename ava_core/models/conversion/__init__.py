"""Conversion, both ways, between Ava's model and the mixture-of-experts models of Transformers.

    ours = from_transformers(OlmoeForCausalLM.from_pretrained(folder))
    theirs = to_transformers(ours, "qwen3_moe")

In float32 both models give the same logits. Nothing is approximated: what the other side lacks is refused with a
`ValueError` that names the field, its value and what it would have to be.
"""

from ava_core.models.conversion.configs import config_from_transformers, config_to_transformers
from ava_core.models.conversion.models import from_transformers, to_transformers
from ava_core.models.conversion.peers import PEERS, Peer

__all__ = [
    "PEERS",
    "Peer",
    "config_from_transformers",
    "config_to_transformers",
    "from_transformers",
    "to_transformers",
]
