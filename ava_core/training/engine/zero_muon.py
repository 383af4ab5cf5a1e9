"""Muon under ZeRO 1 to 3, whose partitions split matrices.

DeepSpeed has a Muon of its own (`deepspeed.runtime.zero.muon`). It orthogonalises before the gradient is clipped, so
that norm and clipping are those of the update, and refuses 3-D parameters at stage 1 in bfloat16. Ours comes after the
clipping: the momentum is kept in partitions, and only the update is gathered, in the type that it is orthogonalised
in; so it is the update of stage 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ava_core.config.train import TrainConfig
from ava_core.training.optimizers import Muon, orthogonalize
from ava_core.training.optimizers.masters import gradient
from ava_core.training.optimizers.parameters import parameter_groups

GATHERED_DTYPE = torch.bfloat16
"""That of the Newton-Schulz iteration, so that gathering rounds nothing that isn't rounded anyway."""


@dataclass(frozen=True)
class Piece:
    """Where a parameter lies in its group's partitions.

    Attributes:
        shape: of the whole parameter.
        start: at stages 1 and 2 its first element in the partitions, put one after the other; at stage 3 the first of
            its share in every partition.
        share: elements that every rank has of it, padding included; None at stages 1 and 2.
    """

    shape: torch.Size
    start: int
    share: int | None = None

    def of(self, partitions_RN: Tensor) -> Tensor:
        """A view (stages 1 and 2) or copy of the whole parameter in all ranks' partitions (ranks, N)."""
        size = self.shape.numel()
        if self.share is None:
            return partitions_RN.view(-1)[self.start : self.start + size].view(self.shape)
        return partitions_RN[:, self.start : self.start + self.share].reshape(-1)[:size].view(self.shape)

    def write(self, partitions_RN: Tensor, whole: Tensor) -> None:
        """Write the whole parameter into the partitions."""
        size = self.shape.numel()
        if self.share is None:
            partitions_RN.view(-1)[self.start : self.start + size] = whole.reshape(-1)
            return
        padded = torch.nn.functional.pad(whole.reshape(-1), (0, partitions_RN.shape[0] * self.share - size))
        partitions_RN[:, self.start : self.start + self.share] = padded.view(partitions_RN.shape[0], self.share)

    def touches(self, rank: int, size: int) -> bool:
        """Whether the partition of `rank`, `size` elements long, has a part of it."""
        return self.share is not None or (
            self.start < (rank + 1) * size and rank * size < self.start + self.shape.numel()
        )


class PartitionedMuon(Muon):
    """`Muon` whose parameters are flat partitions, float32. `find_partitions` comes after DeepSpeed has made them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pieces: dict[Tensor, list[Piece]] = {}

    @classmethod
    def of(cls, model: nn.Module, config: TrainConfig) -> PartitionedMuon:
        """As `build_optimizer` builds `Muon`, for a model that DeepSpeed is about to cut up."""
        return cls(
            parameter_groups(model, config),
            lr=config.learning_rate,
            momentum=config.momentum,
            betas=(config.adam_beta1, config.adam_beta2),
        )

    def find_partitions(self, zero_optimizer: Any) -> None:
        """Read the layout of the partitions from DeepSpeed's optimiser."""
        self._pieces = dict(_pieces(zero_optimizer))

    def _muon(self, parameters: list[Tensor], group: dict) -> None:
        for p in parameters:
            state, grad = self.state[p], gradient(p).to(p.dtype)
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(grad, 1 - group["momentum"])
            update = grad.lerp(state["momentum"], group["momentum"])
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(self._orthogonalized(update, self._pieces[p], group["newton_schulz_steps"]), alpha=-group["lr"])

    def _orthogonalized(self, update_N: Tensor, pieces: Sequence[Piece], steps: int) -> Tensor:
        """This rank's part (N,) of the scaled updates of all matrices in the partitions."""
        ranks, rank = distributed.get_world_size(), distributed.get_rank()
        device = torch.device("cuda") if torch.cuda.is_available() else update_N.device  # partitions may be offloaded
        partitions_RN = _gathered(update_N.to(device, GATHERED_DTYPE), ranks)
        result_RN = torch.zeros_like(partitions_RN, dtype=update_N.dtype)
        batches: dict[tuple[int, int], list[Piece]] = {}
        for piece in pieces:
            if piece.touches(rank, len(update_N)):
                batches.setdefault((piece.shape[-2], piece.shape[-1]), []).append(piece)
        for (m, n), members in batches.items():
            stacked = [piece.of(partitions_RN).reshape(-1, m, n) for piece in members]
            counts = [len(matrices) for matrices in stacked]
            updates = orthogonalize(torch.cat(stacked), steps).to(update_N.dtype) * (0.2 * max(m, n) ** 0.5)
            for piece, whole in zip(members, updates.split(counts), strict=True):
                piece.write(result_RN, whole)
        return result_RN[rank].to(update_N.device)


def _gathered(own_N: Tensor, ranks: int) -> Tensor:
    if ranks == 1:
        return own_N[None]
    all_RN = own_N.new_empty(ranks, len(own_N))
    distributed.all_gather(list(all_RN.unbind()), own_N.contiguous())
    return all_RN


def _pieces(zero: Any) -> Iterator[tuple[Tensor, list[Piece]]]:
    """Each partition of DeepSpeed's that is stepped by itself, with what lies in it."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):  # stage 3: every parameter is cut, a share for each rank
        for flat, group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
            pieces, start = [], 0
            for parameter in group:
                share = parameter.partition_numel()
                pieces.append(Piece(parameter.ds_shape, start, share))
                start += share
            yield flat, pieces
        return
    if hasattr(zero, "single_partition_of_fp32_groups"):  # stages 1 and 2: a group is laid out flat, and that is cut
        flats, groups = zero.single_partition_of_fp32_groups, zero.round_robin_bit16_groups
        offsets = zero.round_robin_bit16_offsets
    else:  # stage 1 in bfloat16
        flats, groups = zero.fp32_groups_flat_partition, zero.bf16_groups
        offsets = [_running_sums([parameter.numel() for parameter in group]) for group in groups]
    for flat, group, starts in zip(flats, groups, offsets, strict=True):
        yield flat, [Piece(p.shape, start) for p, start in zip(group, starts, strict=True)]


def _running_sums(sizes: Sequence[int]) -> list[int]:
    starts, start = [], 0
    for size in sizes:
        starts.append(start)
        start += size
    return starts
