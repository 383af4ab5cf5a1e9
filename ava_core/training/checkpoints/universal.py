"""From one number of ranks or ZeRO stage to another: exact float32 weights and optimiser state, parameter by parameter.

The same idea as DeepSpeed's universal checkpoint (arXiv 2406.18820), without its detour over the disk. DeepSpeed's own
`ds_to_universal` (0.19) knows only Adam's moments, reads and writes unverified pickles in between, and can't change the
stage; ours reads the verified files memory-mapped, so that each rank holds one parameter at a time.
ZeRO cuts the concatenated parameters of a group (1, 2) or each parameter (3) into one slice per rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ava_core.errors import AvaError
from ava_core.training.checkpoints.folder import ENGINE, Checkpoint
from ava_core.training.checkpoints.reading import read_tensors

MASTER = "fp32"
"""Key of the exact weight, beside those that the optimiser has chosen for its state."""


@dataclass(frozen=True)
class Slice:
    """A part of one parameter as one file holds it.

    Attributes:
        states: weight and optimiser state of the flat tensor that contains the part.
        start, count: elements of it.
    """

    states: dict[str, Any]
    start: int
    count: int


class SavedState:
    """All of a verified checkpoint by the names of parameters.

    Args:
        checkpoint: verified.

    Raises:
        IntegrityError: a file holds something that could run code.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.folder = checkpoint.folder
        self.record = checkpoint.record
        stage = self.record["zero_stage"]
        pattern = "*mp_rank_00_model_states.pt"
        self.model = read_tensors(min((self.folder / ENGINE).glob(pattern)))
        self.counters: dict[str, Any] = {}
        """What some optimisers count in their groups instead of their state."""
        self._slices: dict[str, list[Slice]] = {}
        for name, part in self._whole() if not stage else self._cut(stage):
            self._slices.setdefault(name, []).append(part)

    @property
    def names(self) -> set[str]:
        """Names of the parameters that the optimiser updates."""
        return set(self._slices)

    def parameter(self, name: str) -> dict[str, Any]:
        """Flat tensors of one parameter, `fp32` and the optimiser's, and its scalars.

        Raises:
            AvaError: the checkpoint has no such parameter.
        """
        if name not in self._slices:
            raise AvaError(f"{self.folder}: has no parameter {name}: it is a checkpoint of another model")
        parts = self._slices[name]
        result: dict[str, Any] = {}
        for key, value in parts[0].states.items():
            if isinstance(value, Tensor) and value.ndim:
                result[key] = torch.cat([part.states[key].narrow(0, part.start, part.count) for part in parts])
            else:
                result[key] = value
        return result

    def weights(self) -> dict[str, Tensor]:
        """Exact weights by name, float32 and flat, and the buffers as they are; tied weights are there once."""
        exact = {name: self.parameter(name)[MASTER] for name in self.names}
        shapes = {name: shape for group in self.model.get("param_shapes") or () for name, shape in group.items()}
        module = self.model["module"]
        found = {name: value.view(shapes.get(name, module[name].shape)) for name, value in exact.items()}
        buffers = self.model.get("buffer_names") or ()
        return found | {name: module[name] for name in buffers if name in module}

    def _whole(self) -> Iterator[tuple[str, Slice]]:
        """Stage 0: each parameter has a state of its own."""
        states = self.model["optimizer"]["state"]
        self._count(self.model["optimizer"])
        names = [name for group in self.record["parameters"] for name in group]
        for index, name in enumerate(names):
            weight = self.model["module"][name]
            state = dict(states.get(index, {}))
            flat = {MASTER: state.pop("master", weight).float().flatten()}
            for key, value in state.items():
                flat[key] = value.flatten() if isinstance(value, Tensor) and value.ndim else value
            yield name, Slice(flat, 0, weight.numel())

    def _cut(self, stage: int) -> Iterator[tuple[str, Slice]]:
        """ZeRO: the slices of all ranks, in their order."""
        ranks = self.record["ranks"]
        for rank in range(ranks):
            saved = read_tensors(next((self.folder / ENGINE).glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")))
            shard = saved["optimizer_state_dict"]
            if stage == 3:
                optimizer, weights = shard["optimizer_state_dict"], shard["fp32_flat_groups"]
                slices = [_slices_of(shapes, rank, ranks) for shapes in self.model["param_shapes"]]
            else:
                optimizer, weights = shard["base_optimizer_state"], shard["single_partition_of_fp32_groups"]
                slices = [
                    [(name, part.start, part.numel) for name, part in group.items()]
                    for group in shard["param_slice_mappings"]
                ]
            self._count(optimizer)
            for index, (weight, group) in enumerate(zip(weights, slices, strict=True)):
                flat = {MASTER: weight, **optimizer["state"].get(index, {})}
                for name, start, count in group:
                    yield name, Slice(flat, start, count)

    def _count(self, optimizer: dict[str, Any]) -> None:
        for group in optimizer["param_groups"]:
            if "step" in group:
                self.counters = {"step": group["step"]}


def load_converted(deepspeed: Any, checkpoint: Checkpoint) -> None:
    """Load a verified checkpoint into an engine of any stage and number of ranks; rates and decays stay the engine's.

    Raises:
        AvaError: the engine's model has a parameter that the checkpoint lacks, or the other way round.
    """
    saved = SavedState(checkpoint)
    stage = int(deepspeed.zero_optimization_stage())
    names = {parameter: name for name, parameter in deepspeed.module.named_parameters()}
    if missing := sorted(saved.names - set(names.values())):
        raise AvaError(
            f"{checkpoint.folder}: the model has no parameter {missing[0]}: it is another model's checkpoint"
        )
    with torch.no_grad():
        if stage == 3:
            _fill_stage_3(deepspeed.optimizer, saved, names)
        elif stage:
            _fill_stage_1_2(deepspeed.optimizer, saved, names)
        else:
            _fill_whole(deepspeed.optimizer, saved, names)
        for name, buffer in deepspeed.module.named_buffers():
            if name in saved.model["module"]:
                buffer.copy_(saved.model["module"][name])
    for group in deepspeed.optimizer.param_groups:
        group.update(saved.counters)
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(deepspeed, counter, saved.model[counter])


def _fill_whole(optimizer: Any, saved: SavedState, names: dict[Tensor, str]) -> None:
    for parameter in _parameters(optimizer.param_groups):
        state = saved.parameter(names[parameter])
        exact = state.pop(MASTER).view(parameter.shape)
        parameter.copy_(exact)
        own = {key: _as_state(value, parameter.shape, parameter.device) for key, value in state.items()}
        if parameter.dtype != exact.dtype:
            own["master"] = exact.to(parameter.device)
        optimizer.state[parameter] = own


def _fill_stage_1_2(zero: Any, saved: SavedState, names: dict[Tensor, str]) -> None:
    if hasattr(zero, "bf16_groups"):  # DeepSpeed's BF16_Optimizer: stage 1 in bfloat16
        groups, flats = zero.bf16_groups, zero.fp32_groups_flat_partition
    else:
        groups, flats = zero.bit16_groups, zero.single_partition_of_fp32_groups
    for group, flat in zip(groups, flats, strict=True):
        own = zero.optimizer.state[flat]
        own.clear()
        for parameter in group:
            state = saved.parameter(names[parameter])
            parameter.data.copy_(state[MASTER].view(parameter.shape))
            mapping = parameter._hp_mapping
            if mapping is not None:  # some of it is this rank's
                source, target = mapping.lp_fragment_address, mapping.hp_fragment_address
                part = {key: _narrowed(value, source.start, source.numel) for key, value in state.items()}
                _fill_flat(flat, own, part, target.start)
    zero._hp_optimizer_states_linked = False  # views of the state that DeepSpeed has handed out


def _fill_stage_3(zero: Any, saved: SavedState, names: dict[Tensor, str]) -> None:
    from torch import distributed

    rank, ranks = distributed.get_rank(zero.dp_process_group), distributed.get_world_size(zero.dp_process_group)
    zero.checkpoint_event_prologue()
    for index, (group, flat) in enumerate(zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True)):
        own = zero.optimizer.state[flat]
        own.clear()
        offset = 0
        for parameter in group:
            count = math.ceil(parameter.ds_numel / ranks)
            state = saved.parameter(names[parameter])
            padding = ranks * count - parameter.ds_numel
            part = {key: _narrowed(value, rank * count, count, padding) for key, value in state.items()}
            _fill_flat(flat, own, part, offset)
            offset += count
        rounded = zero.fp16_partitioned_groups_flat[index]
        rounded.data.copy_(flat.data)
        parts = zero.unflatten(rounded, zero.fp16_partitioned_groups[index])
        for parameter, part in zip(zero.fp16_partitioned_groups[index], parts, strict=True):
            parameter.data = part.data
    zero.checkpoint_event_epilogue()


def _fill_flat(flat: Tensor, own: dict[str, Any], part: dict[str, Any], start: int) -> None:
    """Put one parameter's slice into the flat weight and the flat state of its group."""
    for key, value in part.items():
        if key == MASTER:
            flat.data.narrow(0, start, value.numel()).copy_(value)
        elif isinstance(value, Tensor) and value.ndim:
            if key not in own:
                own[key] = torch.zeros_like(flat, dtype=value.dtype, requires_grad=False)
            own[key].narrow(0, start, value.numel()).copy_(value)
        else:
            own[key] = _as_state(value, (), flat.device)


def _narrowed(value: Any, start: int, count: int, padding: int = 0) -> Any:
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    return torch.nn.functional.pad(value, (0, padding)).narrow(0, start, count)


def _as_state(value: Any, shape: Iterable[int], device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.view(*shape).clone().to(device) if value.ndim else value.clone()


def _slices_of(shapes: dict[str, torch.Size], rank: int, ranks: int) -> list[tuple[str, int, int]]:
    """Name, offset and size of the parameters' slices in a group's flat tensor of stage 3; padding left out."""
    slices, offset = [], 0
    for name, shape in shapes.items():
        count = math.ceil(shape.numel() / ranks)
        slices.append((name, offset, max(0, min(count, shape.numel() - rank * count))))
        offset += count
    return slices


def _parameters(groups: list[dict]) -> Iterator[Tensor]:
    for group in groups:
        yield from group["params"]
