"""The rank of this process, and the collectives that the training itself uses.

A process is told its rank by environment variables, whoever started it: torchrun, DeepSpeed's launcher and
`launching.processes` set RANK, WORLD_SIZE and LOCAL_RANK, Open MPI and MPICH names of their own. A process without them
trains alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ava_core.distributed import peers
from ava_core.distributed.environment import read_ranks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process's rank among those that train together.

    Attributes:
        rank: 0 for the first of all processes.
        local_rank: 0 for the first on this machine; also the number of its GPU.
        size: processes on all machines.
        local_size: processes on this machine, where the launcher tells it.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Ranks:
        """The ranks that a launcher's variables give; (0, 0, 1) without any.

        Raises:
            ConfigError: variables are missing, contradict each other or are no numbers that fit.
        """
        found = read_ranks(os.environ if environment is None else environment)
        return cls(*found) if found else cls()

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes outputs and logs to the terminal."""
        return self.rank == 0

    def threads_of_each(self, threads: int) -> int:
        """CPU threads for this process, of those that all processes of its machine have together."""
        return max(1, threads // (self.local_size or self.size))

    @property
    def device(self) -> torch.device:
        """What this process computes on: the GPU of its number on the machine, or the CPU."""
        import torch

        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.size > 1:
            self.any(False)

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value, on all ranks."""
        if self.size == 1:
            return value
        from torch import distributed

        values = [value]
        with self._exchange():
            distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def mean(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Means over the ranks, bitwise the same on all of them; all must give the same names."""
        if self.size == 1:
            return dict(figures)
        import torch
        from torch import distributed

        names = sorted(figures)
        own = torch.tensor([figures[name] for name in names], dtype=torch.float64, device=self.device)
        all_ranks = [torch.empty_like(own) for _ in range(self.size)]
        with self._exchange():
            distributed.all_gather(all_ranks, own)
        means = torch.stack(all_ranks).mean(dim=0).tolist()  # summed in the order of ranks by each of them
        return dict(zip(names, means, strict=True))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes of each element, on the device of `values`; on every process, the same bits."""
        if self.size == 1:
            return values
        from torch import distributed

        total = values.to(self.device, copy=True)
        with self._exchange():
            distributed.all_reduce(total)
        return total.to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in one process at least."""
        if self.size == 1:
            return bool(flag)
        import torch
        from torch import distributed

        flags = torch.tensor([int(flag)], dtype=torch.int32, device=self.device)
        with self._exchange():
            distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
        return bool(flags.item())

    def _exchange(self):
        return peers.connection_explained(self.rank)
