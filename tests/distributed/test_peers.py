"""Addresses in Gloo's messages become ranks and machines; Gloo listens where the other machines can reach it."""

import os
import threading

import psutil
import pytest

from ava_core.distributed import peers
from ava_core.distributed.peers import LostPeer, Peer

CLOSED = "[/source/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:25816: Connection reset by peer. This is usual"
PEERS = [Peer(0, 0, "launcher", "10.0.0.1"), Peer(1, 0, "node-a", "10.0.0.2"), Peer(2, 1, "node-a", "10.0.0.2")]


@pytest.fixture(autouse=True)
def two_peers(monkeypatch):
    monkeypatch.setattr(peers, "_peers", PEERS[:2])


def explained(rank=0, message=CLOSED):
    with pytest.raises(LostPeer) as caught, peers.connection_explained(rank):
        raise RuntimeError(message)
    return str(caught.value)


def test_lost_connection_names_rank_and_machine():
    expected = "rank 0 lost the connection to rank 1 on node-a: Read error [10.0.0.2]:25816: Connection reset by peer"
    assert explained() == expected


def test_several_processes_of_a_machine_are_all_named_and_never_oneself(monkeypatch):
    monkeypatch.setattr(peers, "_peers", PEERS)
    assert explained().startswith("rank 0 lost the connection to ranks 1, 2 on node-a: ")
    assert explained(rank=2).startswith("rank 2 lost the connection to rank 1 on node-a: ")


@pytest.mark.parametrize("message", ["Broken pipe", CLOSED.replace("0.2]", "0.9]")])
def test_address_of_nobody_names_nobody(message):
    assert explained(message=message).startswith("rank 0 lost the connection to another process of the training: ")


def test_lost_connection_of_a_whole_training_tells_how_to_go_on(tmp_path):
    with pytest.raises(LostPeer) as caught, peers.loss_explained(0, tmp_path):
        raise RuntimeError(CLOSED)
    assert str(caught.value).startswith("rank 0 lost the connection to rank 1 on node-a: ")
    assert str(caught.value).endswith(f"or with another number of processes and --resume {tmp_path}")
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match=r"^of another kind$"), peers.loss_explained(0, tmp_path):
        raise RuntimeError("of another kind")


def test_processes_learn_where_the_others_run(monkeypatch):
    from torch import distributed

    store, found = distributed.HashStore(), {}

    def meet(own):
        found[own.rank] = peers.meet(store, own, len(PEERS))

    threads = [threading.Thread(target=meet, args=(peer,)) for peer in PEERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == dict.fromkeys(range(3), PEERS)


def test_gloo_uses_the_interface_that_leads_to_rank_0(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    loopback = next(
        name for name, items in psutil.net_if_addrs().items() if any(item.address == "127.0.0.1" for item in items)
    )
    peers.use_interface_towards("127.0.0.1", 29500)
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == loopback
    for name, items in psutil.net_if_addrs().items():
        for item in items:
            if item.family.name == "AF_INET" and name != loopback:
                peers.use_interface_towards(item.address, 29500)
                assert os.environ.pop("GLOO_SOCKET_IFNAME") == name
    peers.use_interface_towards("no-such-host.invalid", 29500)
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    peers.use_interface_towards("127.0.0.1", 29500)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
