import numpy as np
import pytest
import torch

from ava_core.errors import AvaError
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.training.difficulty import reference_difficulty

STREAM = np.random.default_rng(0).integers(1, 60, 105).astype(np.uint16)
STREAM[[17, 40, 41, 90]] = 0
WINDOWS = {"vocab_size": 64, "boundary_token_id": 0}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_layers": 2, "num_ffn_experts": 2, "expert_intermediate_size": 16}
    return EnhancedMoEForCausalLM(EnhancedMoEConfig(vocab_size=64, max_position_embeddings=16, dropout=0.5, **sizes))


def test_score_is_the_loss_of_the_model_on_each_window_alone(model):
    scores = reference_difficulty(model.train(), STREAM, 16, batch_size=4, **WINDOWS)
    assert scores.shape == (6,)
    model.eval()  # the dropout of training mode took no part
    for row, score in enumerate(scores):
        window = torch.from_numpy(STREAM[row * 16 : row * 16 + 17].astype(np.int64))[None]
        ids = torch.cumsum(window[:, :-1] == 0, dim=1)  # tokens attend only within their documents
        with torch.no_grad():
            parts = model(window[:, :-1], shift_labels=window[:, 1:], document_ids=ids).loss_parts
        assert score == pytest.approx(float(parts["cross_entropy"]), rel=1e-5)


def test_model_of_another_vocabulary_or_a_shorter_context_is_refused(model):
    with pytest.raises(AvaError, match=r"reference model: vocab_size = 64: the shards have 65: give a model"):
        reference_difficulty(model, STREAM, 16, vocab_size=65, boundary_token_id=0)
    with pytest.raises(AvaError, match=r"max_position_embeddings = 16: must be >= train\.sequence_length = 32"):
        reference_difficulty(model, STREAM, 32, **WINDOWS)
