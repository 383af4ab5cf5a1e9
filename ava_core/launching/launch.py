"""Launch a training in as many processes as its configuration says; out of memory, again with a smaller micro-batch."""

from __future__ import annotations

from dataclasses import replace

from ava_core.config.train import TrainConfig
from ava_core.distributed.group import require_devices
from ava_core.distributed.ranks import Ranks
from ava_core.launching.requests import training_function
from ava_core.launching.workers import train_in_processes
from ava_core.progress import Progress
from ava_core.training.memory.out_of_memory import MicroBatch, until_it_fits
from ava_core.training.preconditions import require_trainable
from ava_core.training.request import TrainRequest, TrainResult


def launch(request: TrainRequest, progress: Progress) -> TrainResult:
    """Train in this process, or in those that it starts here and on other machines.

    A process that is one of several already, started by torchrun, mpirun or DeepSpeed's launcher, starts no others.

    Args:
        request: what is trained, and how.
        progress: shows progress.

    Raises:
        ConfigError: what is asked for can't be trained here; one line per fault.
        AvaError: as `ava_core.training.train.train`; or a process failed or was killed; or one sequence at a time takes
            too much memory.
        IntegrityError: the shards or a checkpoint can't be read.
    """
    config = request.train_config
    if Ranks.from_environment().size > 1:  # whoever started the ranks halves the micro-batch and starts them again
        return training_function(request.step)(request, progress)
    starts_others = config.processes > 1 or config.hostfile is not None
    if starts_others:
        if config.hostfile is None:  # before the memory: too many processes are too much of it, for that reason
            require_devices(config.processes)
        require_trainable(request)

    def attempt(fitting: TrainConfig) -> TrainResult:
        smaller = replace(request, train_config=fitting)
        if starts_others:
            return train_in_processes(smaller, quiet=progress.quiet)
        return training_function(request.step)(smaller, progress)

    return until_it_fits(MicroBatch(config, request.state), attempt)
