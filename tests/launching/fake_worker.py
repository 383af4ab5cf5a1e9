"""A worker of `ava_core.launching.workers` that trains nothing: what it does is said by the file `acts.json`.

It gives an action for each rank, in the state folder; each process writes its id to `pid-N` there first.
"""

import json
import os
import signal
import threading
import time

from ava_core.distributed.peers import LostPeer
from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError, ConfigError, IntegrityError
from ava_core.launching.worker import main
from ava_core.progress import Progress
from ava_core.training.request import TrainRequest, TrainResult


def train(request: TrainRequest, progress: Progress) -> TrainResult:
    ranks, state = Ranks.from_environment(), request.state
    (state / f"pid-{ranks.rank}.partial").write_text(str(os.getpid()))
    (state / f"pid-{ranks.rank}.partial").rename(state / f"pid-{ranks.rank}")
    act = json.loads((state / "acts.json").read_text())[ranks.rank]
    if act == "wait":  # like a process in an exchange that its peers never come to
        time.sleep(600)
    if act == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if act == "linger":  # a thread that would keep an interpreter from ending
        threading.Thread(target=time.sleep, args=(600,)).start()
        raise AvaError("the loss is no finite number")
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "exit":
        os._exit(7)
    if act == "config":
        raise ConfigError("train.a = 1: must be 2", "train.b = 3: must be 4")
    if act == "integrity":
        raise IntegrityError("shards/x: its bytes differ")
    if act == "defect":
        raise KeyError("weights")
    if act == "lost":
        while not all((state / f"pid-{rank}").exists() for rank in range(ranks.size)):
            time.sleep(0.01)
        raise LostPeer("rank 1 lost the connection")
    print(f"rank {ranks.rank} speaks", flush=True)
    return TrainResult(
        metrics={"threads": ranks.threads_of_each(request.threads), "size": ranks.size},
        timings={"omp": float(os.environ["OMP_NUM_THREADS"])},
    )


if __name__ == "__main__":
    main(train)
