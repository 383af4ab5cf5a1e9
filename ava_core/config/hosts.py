"""How many processes a training has: the processes of each machine times the machines of the hostfile."""

from __future__ import annotations

import re
from pathlib import Path

from ava_core.config.train import TrainConfig
from ava_core.errors import ConfigError, shorten

_LINE = re.compile(r"(\S+)\s+slots=(\d{1,6})\s*(#.*)?")
MAX_BYTES = 1 << 20


def read_hostfile(path: Path) -> dict[str, int]:
    """Processes that each machine has room for, by its name, in the order of the file.

    The format is DeepSpeed's: `HOST slots=N` per line, comments after `#`.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"train.hostfile = {path}: can't be read: {getattr(error, 'strerror', error)}") from error
    if len(text) > MAX_BYTES:
        raise ConfigError(f"train.hostfile = {path}: can't be read: has more than {MAX_BYTES:,} bytes")
    hosts: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if not match:
            raise ConfigError(f"{path}, line {number}: {shorten(repr(line))}: must be `HOST slots=N`")
        if match[1] in hosts:
            raise ConfigError(f"{path}, line {number}: {match[1]} is there twice")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise ConfigError(f"train.hostfile = {path}: names no machine: one per line as `HOST slots=N`")
    return hosts


def world_size(config: TrainConfig) -> int:
    """Processes on all machines.

    Raises:
        ConfigError: a machine has too few slots, or the batch can't be divided by so many processes.
    """
    if config.hostfile is None:
        return config.processes
    hosts = read_hostfile(Path(config.hostfile))
    for host, slots in hosts.items():
        if slots < config.processes:
            raise ConfigError(
                f"train.processes = {config.processes}: {config.hostfile} gives {host} slots={slots}: must be at most"
                " the slots of every machine"
            )
    require_divisible_batches(config, len(hosts))
    return config.processes * len(hosts)


def require_divisible_batches(config: TrainConfig, machines: int) -> None:
    """Refuse batches that the processes of so many machines can't share evenly.

    Raises:
        ConfigError: one of the batch sizes isn't a multiple of one micro-batch on every process.
    """
    unit = config.micro_batch_size * config.processes * machines
    for batch in (*config.curriculum.batch_sizes, config.global_batch_size):
        if batch % unit:
            raise ConfigError(
                f"train.global_batch_size = {batch}: must be a multiple of micro_batch_size x processes x machines"
                f" = {config.micro_batch_size} x {config.processes} x {machines}"
            )
