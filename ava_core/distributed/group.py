"""Rendezvous of the processes of a training: the key-value store, the process group, and DeepSpeed on top of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from ava_core.config.hardware import usable_cores
from ava_core.distributed import peers, shared_memory_op
from ava_core.distributed.deepspeed import import_deepspeed
from ava_core.distributed.environment import LISTEN_DESCRIPTOR
from ava_core.distributed.heartbeat import Heartbeat
from ava_core.distributed.peers import LostPeer, Peer
from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError, first_line

if TYPE_CHECKING:
    from torch.distributed import Store

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another one, at the start and in each exchange: longer than what rank 0 does alone. A
process that died is noticed at once, by the closed connection, and a machine that vanished by `heartbeat`."""

_store: Store | None = None
_heartbeat: Heartbeat | None = None


def connect(ranks: Ranks, timeout: timedelta = TIMEOUT) -> None:
    """Join the process group and hand it to DeepSpeed: NCCL on GPUs, Gloo on CPUs. Does nothing a second time.

    A process alone needs a group too; its store is in memory and no port is opened.

    Args:
        ranks: this process among the others.
        timeout: how long to wait for them, here and in each exchange.

    Raises:
        LostPeer: the other processes can't be reached within `timeout`.
        ConfigError: more processes than devices.
    """
    deepspeed = import_deepspeed()
    from torch import cuda, distributed

    for name, value in (("RANK", ranks.rank), ("LOCAL_RANK", ranks.local_rank), ("WORLD_SIZE", ranks.size)):
        os.environ[name] = str(value)  # DeepSpeed reads them, and not those of MPI
    if ranks.size > 1:
        require_devices(max(ranks.local_rank + 1, ranks.local_size or 1))
    if cuda.is_available():
        cuda.set_device(ranks.local_rank)
    if not distributed.is_initialized():
        store = _meet(ranks, timeout)
        with _one_line(f"rank {ranks.rank} can't join the {ranks.size} processes"):
            distributed.init_process_group(
                "nccl" if cuda.is_available() else "gloo",
                store=distributed.PrefixStore("ava_group", store),
                rank=ranks.rank,
                world_size=ranks.size,
                timeout=timeout,
            )
    if deepspeed.comm.is_initialized():
        return
    shared_memory = shared_memory_op.choose(deepspeed, ranks)
    with shared_memory_op.silent():
        deepspeed.init_distributed(dist_init_required=False, verbose=False, timeout=timeout)
    if shared_memory:
        shared_memory_op.use_for_all_reduce(deepspeed.comm.comm.cdb)


def disconnect() -> None:
    """Stop watching the others, which may end from here on; to be called after the last collective."""
    if _heartbeat is not None:
        _heartbeat.stop()


def _meet(ranks: Ranks, timeout: timedelta) -> Store:
    """The store, once all processes have registered there; starts the heartbeat if there are several machines."""
    global _heartbeat
    store = store_of(ranks, timeout)
    if ranks.size == 1:
        return store
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    peers.use_interface_towards(address, port)
    own = Peer(ranks.rank, ranks.local_rank, socket.gethostname(), peers.own_address(address, port))
    with _one_line(f"rank {ranks.rank} doesn't hear where the {ranks.size} processes run"):
        met = peers.meet(store, own, ranks.size)
    machines = {peer.rank: peer.host for peer in met if peer.local_rank == 0}
    if len(machines) > 1 and ranks.rank in machines:
        from torch import distributed

        def connect_to_store() -> Store:
            return distributed.TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False)

        _heartbeat = Heartbeat(ranks.rank, machines, connect_to_store)
        _heartbeat.start()
    return store


def store_of(ranks: Ranks, timeout: timedelta = TIMEOUT) -> Store:
    """The key-value store of the rendezvous; in memory for one process.

    Raises:
        LostPeer: it can't be reached.
    """
    global _store
    if _store is None:
        from torch import distributed

        if ranks.size == 1:
            return distributed.HashStore()
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        with _one_line(f"rank {ranks.rank} can't reach rank 0 at {address} (MASTER_ADDR:MASTER_PORT)"):
            if LISTEN_DESCRIPTOR in os.environ:
                _store = distributed.TCPStore(
                    os.environ["MASTER_ADDR"],
                    int(os.environ["MASTER_PORT"]),
                    ranks.size,
                    is_master=True,
                    timeout=timeout,
                    master_listen_fd=int(os.environ.pop(LISTEN_DESCRIPTOR)),
                )
            else:
                _store, _, _ = next(distributed.rendezvous("env://", ranks.rank, ranks.size, timeout=timeout))
    return _store


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
        raise LostPeer(f"{what}: {first_line(error)}") from error
