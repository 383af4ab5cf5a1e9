"""The MoE++ language model as Transformers classes, known to `AutoConfig` and `AutoModel*` once imported.

Names of tensors end in their shape, as in `weights_TK`; `ava_core.models.shapes` has the legend.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from ava_core.models.causal_lm import EnhancedMoEForCausalLM
from ava_core.models.classification import EnhancedMoEForSequenceClassification
from ava_core.models.configuration import EnhancedMoEConfig
from ava_core.models.modeling import EnhancedMoEModel
from ava_core.models.outputs import (
    EnhancedMoECausalLMOutput,
    EnhancedMoEModelOutput,
    EnhancedMoESequenceClassifierOutput,
)
from ava_core.models.prediction_heads import attach_prediction_heads, detach_prediction_heads
from ava_core.models.routing.statistics import RoutingStatistics

AutoConfig.register(EnhancedMoEConfig.model_type, EnhancedMoEConfig, exist_ok=True)
AutoModel.register(EnhancedMoEConfig, EnhancedMoEModel, exist_ok=True)
AutoModelForCausalLM.register(EnhancedMoEConfig, EnhancedMoEForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(EnhancedMoEConfig, EnhancedMoEForSequenceClassification, exist_ok=True)

__all__ = [
    "EnhancedMoECausalLMOutput",
    "EnhancedMoEConfig",
    "EnhancedMoEForCausalLM",
    "EnhancedMoEForSequenceClassification",
    "EnhancedMoEModel",
    "EnhancedMoEModelOutput",
    "EnhancedMoESequenceClassifierOutput",
    "RoutingStatistics",
    "attach_prediction_heads",
    "detach_prediction_heads",
]
