"""What a training can be refused for before anything is built for it."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from ava_core.config.hardware import Hardware, detect
from ava_core.config.memory import require_memory
from ava_core.config.optimizers import OPTIMIZERS
from ava_core.config.train import TrainConfig
from ava_core.data.tokenizer import CONFIG_FILE, FILE, read_settings, special_ids
from ava_core.data.tokenizer_identity import require_extension
from ava_core.distributed.ranks import Ranks
from ava_core.errors import AvaError, ConfigError
from ava_core.training.compiler import require_compiler
from ava_core.training.precision import require_support
from ava_core.training.request import TrainRequest
from ava_core.training.teacher.lessons import require_teacher

log = logging.getLogger(__name__)


def require_trainable(request: TrainRequest) -> None:
    """Refuse shards without a tokenizer, or with another one than the model to begin from or the teacher; a model that
    no machine like this one can hold; what isn't installed; and settings that ask for two beginnings, or for one that
    isn't there.

    Raises:
        AvaError: a file of the tokenizer is missing or damaged.
        ConfigError: there is too little memory, a library is missing, or the settings contradict each other.
        IntegrityError: the shards can't be read.
    """
    _require_tokenizer(request.shards / "tokenizer")
    _require_library(request.train_config)
    if request.train_config.compile:
        require_compiler()
    _require_one_beginning(request)
    if request.init:
        require_extension(request.init, request.shards)
    require_teacher(request)
    vocab_size = special_ids(request.shards / "tokenizer").vocab_size
    require_memory(request.model_config, request.train_config, vocab_size, _machine())


def refuse_impossible(config: TrainConfig, ranks: Ranks) -> None:
    """Refuse a precision that this machine can't compute in, and a global batch that doesn't divide among the ranks.

    Raises:
        ConfigError: one line, with the way out.
    """
    require_support(config)
    if config.global_batch_size % (config.micro_batch_size * ranks.size):
        raise ConfigError(
            f"train.global_batch_size = {config.global_batch_size}: must be a multiple of micro_batch_size x ranks"
            f" = {config.micro_batch_size} x {ranks.size}"
        )
    if config.offload != "none" and not torch.cuda.is_available():
        log.warning("train.offload = %s: there is no GPU here whose memory it would relieve", config.offload)


def _require_tokenizer(folder: Path) -> None:
    for name in (FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise AvaError(f"{folder / name}: no such file: run `ava preprocess` again")
    read_settings(folder)  # or a damaged file would be found at the end


def _require_library(config: TrainConfig) -> None:
    library = OPTIMIZERS[config.optimizer].library
    if library is not None and find_spec(library) is None:
        raise ConfigError(
            f"train.optimizer = {config.optimizer}: is from {library}, which isn't installed: pip install"
            " 'ava-moe[optimizers]', or use adamw"
        )


def _require_one_beginning(request: TrainRequest) -> None:
    config = request.train_config
    if request.init and request.resume:
        raise ConfigError(
            f"--resume {request.resume}: begins from a checkpoint, and train.init = {request.init} from a model: give"
            " one of them"
        )
    if config.init_schedule == "continue" and not (request.init or request.resume):
        raise ConfigError("train.init_schedule = continue: there is nothing to go on from: give --init or --resume")
    if config.reset_optimizer and not (request.init or request.resume):
        raise ConfigError("train.reset_optimizer = true: there is no optimiser to reset: give --resume")
    if config.keep_optimizer and request.resume:
        raise ConfigError(f"train.keep_optimizer = true: --resume {request.resume} keeps it by itself: leave it out")
    if config.keep_optimizer and not request.init:
        raise ConfigError("train.keep_optimizer = true: there is no optimiser to keep: give --init")
    if config.keep_optimizer and config.reset_optimizer:
        raise ConfigError("train.keep_optimizer = true: train.reset_optimizer begins it anew: leave one out")


def _machine() -> Hardware:
    """This machine, with GPUs only if PyTorch may use them."""
    machine = detect()
    return machine if torch.cuda.is_available() else replace(machine, gpus=0)
