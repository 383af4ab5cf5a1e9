"""Which process of a training this one is, and what the processes say to each other.

A process is told its rank by environment variables, whoever started it: torchrun, DeepSpeed's launcher and
`launch` set RANK, WORLD_SIZE and LOCAL_RANK, Open MPI and MPICH names of their own. A process without them trains
alone.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from ava_core.config.hardware import usable_cores
from ava_core.distributed import peers
from ava_core.distributed.heartbeat import Heartbeat
from ava_core.distributed.peers import LostPeer, Peer
from ava_core.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import Store

log = logging.getLogger(__name__)
T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another one, at the start and in each exchange: longer than what rank 0 does alone. A
process that died is noticed at once, by the closed connection, and a machine that vanished by `heartbeat`."""

FAMILIES = {
    "torchrun or deepspeed": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
}
"""Variables of rank, number of processes and rank on this machine, by who sets them."""
LISTEN_DESCRIPTOR = "TRAINING_LISTEN_DESCRIPTOR"
"""Set for rank 0 by `launch`: the open socket at MASTER_PORT, which the store takes over."""
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")

_store: Store | None = None
_heartbeat: Heartbeat | None = None


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
        environment = os.environ if environment is None else environment
        found = {
            launcher: _read(launcher, names, environment)
            for launcher, names in FAMILIES.items()
            if any(name in environment for name in names)
        }
        if not found:
            return cls()
        (launcher, given), *others = found.items()
        for other, differing in others:
            if differing != given:
                raise ConfigError(
                    f"environment: {_shown(FAMILIES[launcher], given)} contradict {_shown(FAMILIES[other], differing)}:"
                    " leave the variables to the one launcher that starts this process"
                )
        rank, size, local_rank = given
        if size > 1 and (missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]):
            raise ConfigError(
                f"environment: {' and '.join(missing)} must be set for {size} processes: the address and a free port"
                " of the machine of rank 0"
            )
        local_sizes = [environment[name] for name in LOCAL_SIZES if environment.get(name, "").isdecimal()]
        return cls(rank, local_rank, size, int(local_sizes[0]) if local_sizes else None)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes outputs and speaks to the user."""
        return self.rank == 0

    def threads_of_each(self, threads: int) -> int:
        """CPU threads for this process, of those that all processes of its machine have together."""
        return max(1, threads // (self.local_size or self.size))

    def connect(self, timeout: timedelta = TIMEOUT) -> None:
        """Join the process group and hand it to DeepSpeed: NCCL on GPUs, Gloo on CPUs. Does nothing a second time.

        A process alone needs a group too; its store is in memory and no port is opened.

        Raises:
            AvaError: the other processes can't be reached within `timeout`.
            ConfigError: more processes than devices.
        """
        deepspeed = import_deepspeed()
        from torch import cuda, distributed

        from ava_core.distributed import shared_memory_op

        for name, value in (("RANK", self.rank), ("LOCAL_RANK", self.local_rank), ("WORLD_SIZE", self.size)):
            os.environ[name] = str(value)  # DeepSpeed reads them, and not those of MPI
        if self.size > 1:
            require_devices(max(self.local_rank + 1, self.local_size or 1))
        if cuda.is_available():
            cuda.set_device(self.local_rank)
        if not distributed.is_initialized():
            store = self._meet(timeout)
            with _one_line(f"rank {self.rank} can't join the {self.size} processes"):
                distributed.init_process_group(
                    "nccl" if cuda.is_available() else "gloo",
                    store=distributed.PrefixStore("ava_group", store),
                    rank=self.rank,
                    world_size=self.size,
                    timeout=timeout,
                )
        if deepspeed.comm.is_initialized():
            return
        shared_memory = shared_memory_op.choose(deepspeed, self)
        with shared_memory_op.silent():
            deepspeed.init_distributed(dist_init_required=False, verbose=False, timeout=timeout)
        if shared_memory:
            shared_memory_op.use_for_sums(deepspeed.comm.comm.cdb)

    def disconnect(self) -> None:
        """From now on the others may end; to be called when all have done what they do together."""
        if _heartbeat is not None:
            _heartbeat.stop()

    def _meet(self, timeout: timedelta) -> Store:
        """The store, when all processes have said where they run; those on other machines are then watched."""
        global _heartbeat
        store = self.store(timeout)
        if self.size == 1:
            return store
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        peers.use_interface_towards(address, port)
        own = Peer(self.rank, self.local_rank, socket.gethostname(), peers.own_address(address, port))
        with _one_line(f"rank {self.rank} doesn't hear where the {self.size} processes run"):
            met = peers.meet(store, own, self.size)
        machines = {peer.rank: peer.host for peer in met if peer.local_rank == 0}
        if len(machines) > 1 and self.rank in machines:
            from torch import distributed

            def connect() -> Store:
                return distributed.TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False)

            _heartbeat = Heartbeat(self.rank, machines, connect)
            _heartbeat.start()
        return store

    def store(self, timeout: timedelta = TIMEOUT) -> Store:
        """The key-value store that the processes meet at; in memory for one process.

        Raises:
            AvaError: it can't be reached.
        """
        global _store
        if _store is None:
            from torch import distributed

            if self.size == 1:
                return distributed.HashStore()
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            with _one_line(f"rank {self.rank} can't reach rank 0 at {address} (MASTER_ADDR:MASTER_PORT)"):
                if LISTEN_DESCRIPTOR in os.environ:
                    _store = distributed.TCPStore(
                        os.environ["MASTER_ADDR"],
                        int(os.environ["MASTER_PORT"]),
                        self.size,
                        is_master=True,
                        timeout=timeout,
                        master_listen_fd=int(os.environ.pop(LISTEN_DESCRIPTOR)),
                    )
                else:
                    _store, _, _ = next(distributed.rendezvous("env://", self.rank, self.size, timeout=timeout))
        return _store

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            self.any(False)

    def broadcast_object(self, value: T) -> T:
        """What rank 0 gives; the others' values are ignored."""
        if self.size == 1:
            return value
        from torch import distributed

        values = [value]
        with self._exchange():
            distributed.broadcast_object_list(values, src=0, device=self._device())
        return values[0]

    def mean(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Means over the processes, the same bits on all; all must give the same names."""
        if self.size == 1:
            return dict(figures)
        import torch
        from torch import distributed

        names = sorted(figures)
        own = torch.tensor([figures[name] for name in names], dtype=torch.float64, device=self._device())
        all_ranks = [torch.empty_like(own) for _ in range(self.size)]
        with self._exchange():
            distributed.all_gather(all_ranks, own)
        means = torch.stack(all_ranks).mean(dim=0).tolist()  # summed in the order of ranks by each of them
        return dict(zip(names, means, strict=True))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in one process at least."""
        if self.size == 1:
            return bool(flag)
        import torch
        from torch import distributed

        flags = torch.tensor([int(flag)], dtype=torch.int32, device=self._device())
        with self._exchange():
            distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
        return bool(flags.item())

    def _exchange(self):
        return peers.connection_explained(self.rank)

    def _device(self):
        import torch

        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def import_deepspeed():
    """DeepSpeed without its own log lines, on the CPU where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Of names that torch gives new ones and DeepSpeed still uses; ZeRO 3 would print them in every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def require_devices(processes: int) -> None:
    """Refuse more processes on this machine than it has GPUs, or, without a GPU, cores.

    Raises:
        ConfigError: there are too many.
    """
    import torch

    kind, count = "usable cores and no GPU", usable_cores()
    if torch.cuda.is_available():
        kind, count = "GPUs", torch.cuda.device_count()
    if processes > count:
        raise ConfigError(
            f"train.processes = {processes}: this machine has {count} {kind}: use at most {count} processes on it, or"
            " more machines with train.hostfile"
        )


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's DistError and its kin, and Gloo's plain ones
        raise LostPeer(f"{what}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def _read(launcher: str, names: tuple[str, str, str], environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Rank, size and local rank."""
    if missing := [name for name in names if name not in environment]:
        there = [name for name in names if name in environment]
        raise ConfigError(
            f"environment: {' and '.join(missing)} must be set beside {' and '.join(there)}: {launcher} sets all three;"
            " a process alone has none of them"
        )
    for name in names:
        if not environment[name].isdecimal():
            raise ConfigError(f"environment: {name} = {environment[name]!r}: must be a number >= 0")
    rank, size, local_rank = (int(environment[name]) for name in names)
    if not local_rank <= rank < size:
        raise ConfigError(
            f"environment: {_shown(names, (rank, size, local_rank))}: must be {names[2]} <= {names[0]} < {names[1]}"
        )
    return rank, size, local_rank


def _shown(names: tuple[str, str, str], values: tuple[int, int, int]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))
