"""Who the other processes of a training are, where they run, and how their loss is told.

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

from ava_core.errors import AvaError, one_line

if TYPE_CHECKING:
    from torch.distributed import Store

GO_ON = "run the same command again to go on from the last checkpoint"
_PLACE_IN_SOURCE = re.compile(r"^\[[^\]]*\.cc:\d+\] ")
_ADDRESS = re.compile(r"\[([0-9A-Fa-f.:]+)\]:\d+")
_LOST_CONNECTION = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "Broken pipe")

_places: list[Place] = []


class LostPeer(AvaError):
    """Another process has gone: what this one reports is the consequence, not the cause."""


@dataclass(frozen=True)
class Place:
    """Where a process of the training runs.

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
    """This machine's address on the way to rank 0's; empty if there is no way. Sends nothing."""
    try:
        for family, kind, protocol, _, target in socket.getaddrinfo(master, port, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)
                return probe.getsockname()[0]
    except OSError:
        pass
    return ""


def meet(store: Store, own: Place, size: int) -> list[Place]:
    """Tell the others where this process runs, and learn where they do. Collective.

    Returns:
        The places of all processes, by rank.
    """
    global _places
    store.set(f"ava_place/{own.rank}", json.dumps(asdict(own)))
    _places = [Place(**json.loads(store.get(f"ava_place/{rank}"))) for rank in range(size)]
    return _places


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says that another process has gone."""
    return isinstance(error, LostPeer) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST_CONNECTION)
    )


@contextmanager
def connection_explained(rank: int) -> Iterator[None]:
    """What an exchange raises becomes a `LostPeer` that names the other process and its machine."""
    try:
        yield
    except RuntimeError as error:  # torch's DistError and its kin, and Gloo's plain ones
        reason = _first_sentence(error)
        raise LostPeer(f"rank {rank} lost the connection to {_other_side(rank, reason)}: {reason}") from error


@contextmanager
def loss_explained(rank: int, checkpoints: Path) -> Iterator[None]:
    """As `connection_explained`, around a whole training: other errors pass; adds what can be done."""
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
    """Without the place in Gloo's source before it, and the advice after it."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return _PLACE_IN_SOURCE.sub("", line).partition(". ")[0]


def _other_side(rank: int, reason: str) -> str:
    found = _ADDRESS.search(reason)
    there = [place for place in _places if found and place.address == found[1] and place.rank != rank]
    if not there:
        return "another process of the training"
    ranks = ", ".join(str(place.rank) for place in there)
    return f"rank{'s' if len(there) > 1 else ''} {ranks} on {there[0].host}"
