"""Labels further ahead, and what the extra heads' losses are."""

import pytest
import torch

from ava_core.losses import IGNORE_INDEX, CrossEntropy, MultiToken, UnifiedLoss, future_labels, token_nll

_ = IGNORE_INDEX


@pytest.mark.parametrize(
    ("labels", "depth", "documents", "expected"),
    [
        ([1, 2, 3, 4], 1, None, [2, 3, 4, _]),
        ([1, 2, 3, 4], 2, None, [3, 4, _, _]),
        ([1, 2, 3, 4], 4, None, [_, _, _, _]),
        ([1, _, 3, 4], 1, None, [_, _, 4, _]),
        ([1, _, 3, 4], 2, None, [_, _, _, _]),
        ([1, 2, 3, 4], 1, [0, 0, 1, 1], [2, _, 4, _]),
        ([1, 2, 3, 4], 2, [0, 0, 1, 1], [_, _, _, _]),
    ],
)
def test_future_labels_stop_at_ignored_ones_and_at_documents(labels, depth, documents, expected):
    ids = None if documents is None else torch.tensor([documents])
    assert future_labels(torch.tensor([labels]), depth, ids).tolist() == [expected]


def test_heads_are_scored_on_the_tokens_after_the_next_and_share_the_weight():
    generator = torch.Generator().manual_seed(0)
    hidden_BSD, near_BSD, far_BSD = torch.randn(3, 2, 5, 4, generator=generator)
    weight_VD = torch.randn(7, 4, generator=generator)
    labels_BS = torch.randint(0, 7, (2, 5), generator=generator)
    loss = UnifiedLoss([], multi_token=MultiToken(weight=0.6, depth=2))
    out = loss(labels_BS, logits=hidden_BSD @ weight_VD.T, head_weight_VD=weight_VD, future_hidden=[near_BSD, far_BSD])
    near = token_nll((near_BSD @ weight_VD.T)[:, :-1], labels_BS[:, 1:]).sum() / 10
    far = token_nll((far_BSD @ weight_VD.T)[:, :-2], labels_BS[:, 2:]).sum() / 10
    torch.testing.assert_close(out.parts, {"multi_token_1": near, "multi_token_2": far})
    torch.testing.assert_close(out.total, 0.3 * near + 0.3 * far)


def test_another_number_of_heads_is_refused():
    hidden_BSD = torch.zeros(1, 3, 4)
    loss = UnifiedLoss([CrossEntropy()], multi_token=MultiToken(weight=1.0, depth=2))
    with pytest.raises(ValueError, match="prediction heads = 1: must be multi_token_depth = 2"):
        loss(
            torch.zeros(1, 3, dtype=torch.long),
            hidden=hidden_BSD,
            head_weight_VD=torch.zeros(7, 4),
            future_hidden=[hidden_BSD],
        )
