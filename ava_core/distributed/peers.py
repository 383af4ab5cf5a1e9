"""The other processes of a training: on which machine they run, and errors that name a lost one.

What Gloo says of a connection that has ended names an address; here it becomes a rank and its machine.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ava_core.errors import AvaError, first_line, one_line

if TYPE_CHECKING:
    from torch.distributed import Store

GO_ON = "run the same command again to go on from the last checkpoint"
_SOURCE_LINE = re.compile(r"^\[[^\]]*\.cc:\d+\] ")
_ADDRESS = re.compile(r"\[([0-9A-Fa-f.:]+)\]:\d+")
_LOST_CONNECTION = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe")

_peers: list[Peer] = []


class LostPeer(AvaError):
    """The connection to another process is lost: the consequence of a failure there, not the cause."""


@dataclass(frozen=True)
class Peer:
    """A process of the training, and where it runs.

    Attributes:
        rank, local_rank: as in `Ranks`.
        host: name of the machine.
        address: of the machine, as the others see it; empty if it isn't known.
    """

    rank: int
    local_rank: int
    host: str
    address: str


def use_interface_towards(master: str, port: int) -> None:
    """Have Gloo use the network interface that leads to rank 0's machine, unless GLOO_SOCKET_IFNAME names one.

    By itself it takes the address that the machine's own name resolves to: on Debian that is 127.0.1.1, which no other
    machine reaches.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    import psutil

    address = own_address(master, port)
    for name, addresses in psutil.net_if_addrs().items():
        if any(item.address.partition("%")[0] == address for item in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return


def own_address(master: str, port: int) -> str:
    """Address of the interface that routes to rank 0's machine; empty if there is no route. Sends nothing."""
    try:
        for family, kind, protocol, _, target in socket.getaddrinfo(master, port, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)
                return probe.getsockname()[0]
    except OSError:
        pass
    return ""


def meet(store: Store, own: Peer, size: int) -> list[Peer]:
    """Exchange machine names and addresses with all processes through the store. Collective.

    Returns:
        All processes, by rank.
    """
    global _peers
    store.set(f"ava_peer/{own.rank}", json.dumps(asdict(own)))
    _peers = [Peer(**json.loads(store.get(f"ava_peer/{rank}"))) for rank in range(size)]
    return _peers


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error means that the connection to another process was lost."""
    return isinstance(error, LostPeer) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST_CONNECTION)
    )


@contextmanager
def connection_explained(rank: int) -> Iterator[None]:
    """Turn the error of a collective into a `LostPeer` that names the other process and its machine."""
    try:
        yield
    except RuntimeError as error:  # torch's DistError and its kin, and Gloo's plain ones
        reason = _first_sentence(error)
        raise LostPeer(f"rank {rank} lost the connection to {_other_side(rank, reason)}: {reason}") from error


@contextmanager
def loss_explained(rank: int, checkpoints: Path) -> Iterator[None]:
    """As `connection_explained`, around a whole training: other errors pass; the message adds how to resume."""
    try:
        try:
            yield
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            with connection_explained(rank):  # raised by DeepSpeed's exchanges
                raise
    except LostPeer as error:
        raise LostPeer(
            f"{one_line(str(error))}: {GO_ON}, or with another number of processes and --resume {checkpoints}"
        ) from error


def _first_sentence(error: BaseException) -> str:
    """Without the line of Gloo's source before it, and the advice after it."""
    line = first_line(error)
    return _SOURCE_LINE.sub("", line).partition(". ")[0]


def _other_side(rank: int, reason: str) -> str:
    found = _ADDRESS.search(reason)
    there = [peer for peer in _peers if found and peer.address == found[1] and peer.rank != rank]
    if not there:
        return "another process of the training"
    ranks = ", ".join(str(peer.rank) for peer in there)
    return f"rank{'s' if len(there) > 1 else ''} {ranks} on {there[0].host}"
