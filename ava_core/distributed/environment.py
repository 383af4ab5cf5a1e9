"""The rank of a process, by the environment variables of whoever has started it."""

from __future__ import annotations

from collections.abc import Mapping

from ava_core.errors import ConfigError

FAMILIES = {
    "torchrun or deepspeed": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
}
"""Variables of rank, number of processes and rank on this machine, by who sets them."""
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
"""Variables of the number of processes on this machine, by who sets them."""
LISTEN_DESCRIPTOR = "TRAINING_LISTEN_DESCRIPTOR"
"""Set for rank 0 by `launching.processes`: the open socket at MASTER_PORT, which the store takes over."""


def read_ranks(environment: Mapping[str, str]) -> tuple[int, int, int, int | None] | None:
    """Rank, local rank, number of processes, and of those on this machine; None without variables of a launcher.

    Raises:
        ConfigError: variables are missing, contradict each other or are no numbers that fit.
    """
    found = {
        launcher: _read(launcher, names, environment)
        for launcher, names in FAMILIES.items()
        if any(name in environment for name in names)
    }
    if not found:
        return None
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
    return rank, local_rank, size, int(local_sizes[0]) if local_sizes else None


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
