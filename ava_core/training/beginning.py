"""Where a training begins: with fresh weights, from a finished model (`--init`), or from a checkpoint (`--resume`).

| | weights | state of the optimiser | steps and schedule |
|---|---|---|---|
| fresh | seeded | new | from 0 |
| `--init MODEL` | the model's | new, its training's with keep_optimizer | from 0; with continue from the model's |
| `--resume CHECKPOINT` | the checkpoint's | the checkpoint's, new with reset_optimizer | on; with anew from 0 |

A killed training goes on from its own last checkpoint, whatever it began from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import torch

from ava_core.config.adapter import AdapterConfig
from ava_core.config.model import ModelConfig
from ava_core.distributed.ranks import Ranks
from ava_core.errors import ConfigError
from ava_core.models import EnhancedMoEConfig, EnhancedMoEForCausalLM
from ava_core.models.vocabulary import grow_vocabulary
from ava_core.training.adapting import add_updates, require_same_model
from ava_core.training.batch import Batches
from ava_core.training.checkpoints import Checkpoint, Restored, check_resume, position_of, read_weights, restore
from ava_core.training.engine.engine import TrainingEngine
from ava_core.training.freezing import frozen_state
from ava_core.training.initial import Parent, fill, load_parent
from ava_core.training.kept_optimizer import find_kept, require_no_growth, require_own
from ava_core.training.objective import TrainedModel
from ava_core.training.request import TrainRequest

log = logging.getLogger(__name__)
CONTINUE, ANEW = "continue", "anew"


class Vocabulary(Protocol):
    """What of a tokenizer a model is made for."""

    @property
    def vocab_size(self) -> int:
        """Entries; every token is smaller."""
        ...

    @property
    def boundary_token_id(self) -> int:
        """The token that ends every document."""
        ...

    @property
    def pad_token_id(self) -> int:
        """The token that fills up batches."""
        ...


def build_model(
    config: ModelConfig,
    vocabulary: Vocabulary,
    vocab_size: int = 0,
    head: type[TrainedModel] = EnhancedMoEForCausalLM,
) -> Any:
    """A model with fresh weights for the tokens of `vocabulary`.

    Args:
        config: the architecture.
        vocabulary: of the shards.
        vocab_size: rows of the embedding, where they are more than the tokenizer's entries.
        head: the model's class.
    """
    boundary = vocabulary.boundary_token_id
    return head(
        EnhancedMoEConfig(
            **config.model_dump(),
            **_head_settings(head),
            vocab_size=max(vocab_size, vocabulary.vocab_size),
            bos_token_id=boundary,
            eos_token_id=boundary,
            pad_token_id=vocabulary.pad_token_id,
        )
    )


def _head_settings(head: type[TrainedModel]) -> dict[str, Any]:
    """A classifier gives one score."""
    return {} if issubclass(head, EnhancedMoEForCausalLM) else {"num_labels": 1}


def build_from(
    parent: Parent,
    config: ModelConfig,
    vocabulary: Vocabulary,
    adapter: AdapterConfig | None = None,
    head: type[TrainedModel] = EnhancedMoEForCausalLM,
) -> Any:
    """A model with the weights of a finished one, and rows for the entries that its tokenizer has got since.

    Args:
        parent: the finished one.
        config: the architecture.
        vocabulary: of the shards.
        adapter: with a kind, the model gets its updates, and they alone are to be trained.
        head: the model's class; one that the parent hasn't begins with fresh weights.

    Raises:
        ConfigError: the parent has none of what the adapter is to update, or the adapter would be of another model.
        IntegrityError: the weights aren't those of the architecture, or can't be read.
    """
    model: Any = head(EnhancedMoEConfig(**config.model_dump(), **_head_settings(head), vocab_size=parent.vocab_size))
    load_parent(model, parent)
    if adapter is not None and adapter.kind:
        require_same_model(parent, config, vocabulary.vocab_size)
        add_updates(model, adapter)
        return model
    boundary = vocabulary.boundary_token_id
    grow_vocabulary(model, vocabulary.vocab_size, boundary_token_id=boundary, pad_token_id=vocabulary.pad_token_id)
    return model


class Beginning:
    """What a training begins from.

    Args:
        request: with `init` or `resume`, or neither.
        identity: what a checkpoint must have in common with this training to be resumed from.
        ranks: this process among those that train.
        head: the model's class.
    """

    def __init__(
        self,
        request: TrainRequest,
        identity: dict[str, Any],
        ranks: Ranks,
        head: type[TrainedModel] = EnhancedMoEForCausalLM,
    ) -> None:
        self.request, self.identity, self.ranks, self.head = request, identity, ranks, head
        self.config = request.train_config
        self._random: torch.Tensor | None = None

    @cached_property
    def parent(self) -> Parent | None:
        """The model to begin from."""
        return Parent.read(self.request.init) if self.request.init else None

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to begin from; beside a model, that of its training's last step.

        Raises:
            ConfigError: it is none, or one of something else.
        """
        if self.request.resume:
            return check_resume(self.request.resume, self.identity, self.config, self.ranks)
        if self.parent and self.config.keep_optimizer:
            return find_kept(self.parent, self.request.work, self.identity, self.config, self.ranks)
        return None

    def check(self) -> None:
        """Refuse what can't be begun from, before anything is built.

        Raises:
            ConfigError: one line per fault, with what to use instead.
        """
        step, origin, steps = 0, "", self.config.steps
        checkpoint = self.checkpoint
        if self.parent and self._schedule == CONTINUE:
            step, origin = self.parent.steps, f"train.init = {self.parent.folder}"
        elif checkpoint and self._schedule == CONTINUE:
            step, origin = checkpoint.step, f"--resume {self.request.resume}"
        if step >= steps:
            raise ConfigError(
                f"{origin}: is of step {step}: train.steps = {steps} counts from the beginning and must be more"
                ", or train.init_schedule be anew"
            )

    def build(self, vocabulary: Vocabulary) -> Any:
        """The model with the weights that the training begins with; every call gives the same.

        But for a checkpoint whose optimiser is kept: the engine takes the weights with its state.
        """
        if self._random is None:
            self._random = torch.get_rng_state()
            self._tell(vocabulary)
            return self._build(vocabulary)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            return self._build(vocabulary)

    def finished(self, vocabulary: Vocabulary, trained: dict[str, torch.Tensor], model: Any) -> Any:
        """The model of a finished training, float32: what was trained, and as they were, the frozen parameters.

        Args:
            vocabulary: of the shards.
            trained: exact weights and buffers by name, without the frozen ones; those of other heads are left out.
            model: the one that was trained.
        """
        if frozen := frozen_state(model):
            finished = self.build(vocabulary)
            trained = {
                **{name: finished.state_dict()[name] for name in frozen & finished.state_dict().keys()},
                **trained,
            }
        else:
            rows = self.parent.vocab_size if self.parent else 0
            finished = build_model(self.request.model_config, vocabulary, rows, self.head)
        finished.load_state_dict({name: trained[name] for name in finished.state_dict()})
        return finished

    def start(self, batches: Batches) -> Callable[[TrainingEngine], Restored] | None:
        """What brings the engine, and the trainer, to where the training begins; None: they are there.

        Args:
            batches: what is trained on.
        """
        if self.checkpoint:
            return self._resume
        if self.parent:
            if self._schedule == ANEW:
                return None
            position = Restored(self.parent.steps, {}, self.parent.tokens_seen, batches.record(0))
            log.info("train: the schedule goes on at step %d", position.step)
            return lambda _: position
        return None

    @property
    def record(self) -> dict[str, Any]:
        """For training.json: the model that it began from, by its digest, and the adapter; empty without them."""
        if not self.parent:
            return {}
        kept = {"optimizer": "kept"} if self.config.keep_optimizer else {}
        parent = {"model": self.parent.digest, "steps": self.parent.steps, "schedule": self._schedule, **kept}
        adapter = self.config.adapter
        return {"parent": parent, **({"adapter": adapter.model_dump()} if adapter.kind else {})}

    @property
    def _schedule(self) -> str:
        return self.config.init_schedule or (CONTINUE if self.request.resume else ANEW)

    def _tell(self, vocabulary: Vocabulary) -> None:
        if self.parent:
            log.info("train: begins from the weights of %s (%s)", self.parent.folder, self.parent.digest[:12])
            if (added := vocabulary.vocab_size - self.parent.vocab_size) > 0:
                if self.config.keep_optimizer:
                    require_no_growth(self.parent, added)
                log.info("train: %d further rows, for entries that the tokenizer has got since", added)

    def _build(self, vocabulary: Vocabulary) -> Any:
        config = self.request.model_config
        parent, adapter = self.parent, self.config.adapter
        if parent:
            model = build_from(parent, config, vocabulary, adapter, self.head)
        else:
            model = build_model(config, vocabulary, head=self.head)
        if self.checkpoint and not parent and (self.config.reset_optimizer or self.config.freeze):
            weights = read_weights(self.checkpoint, self.ranks)
            fill(model, {name: value for name, value in weights.items() if name in model.state_dict()}, "checkpoint")
        return model

    def _resume(self, engine: TrainingEngine) -> Restored:
        assert self.checkpoint is not None
        if self.config.reset_optimizer:
            found = position_of(self.checkpoint)
            log.info("train: weights of %s; the optimiser begins anew", self.checkpoint.folder)
        else:
            found = restore(engine, self.checkpoint, self.ranks)
            if self.parent:
                require_own(self.parent, self.checkpoint, engine.exact_state_dict())
        if self._schedule == CONTINUE:
            return found
        log.info("train: the schedule begins anew")
        return Restored(0, {}, 0, found.windows)
