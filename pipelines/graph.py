"""What the local runner reads in a compiled pipeline: its container tasks, their order, and their time limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ava_core.errors import ConfigError
from ava_core.steps.table import STEPS

COMPONENT_PREFIX = "comp-"
RUNS_LAST = "ALL_UPSTREAM_TASKS_COMPLETED"
"""Trigger strategy of an exit handler in KFP's IR: it runs whether the tasks before it succeeded or not."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """A component that runs as a container.

    Attributes:
        name: its name, without KFP's prefix.
        definition: its ComponentSpec.
        program: the words of its command from `ava` on; empty for another program.
        step: the step of the step table that it runs; None for another command.
        image: its image.
        timeout: seconds that a task of it may take; None for as long as it likes.
    """

    name: str
    definition: Mapping[str, Any]
    program: Sequence[str]
    step: str | None
    image: str
    timeout: float | None

    def is_named(self, wanted: str) -> bool:
        """Whether a name given by a person means it: its own, or the step's."""
        return wanted in (self.name, self.step)


class Graph:
    """A compiled pipeline.

    Args:
        ir: what KFP's compiler wrote: the PipelineSpec, and a second document where there are settings for Kubernetes.
    """

    def __init__(self, ir: str) -> None:
        self.spec, *platform = yaml.load_all(ir, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        settings = (platform[0] if platform else {}).get("platforms", {}).get("kubernetes", {})
        self._platform = settings.get("deploymentSpec", {}).get("executors", {})
        self._components = {found.name: found for found in map(self._component, self.spec["components"]) if found}

    def component(self, name: str) -> Component:
        """The container component of that name."""
        return self._components[name]

    @property
    def order(self) -> list[str]:
        """The component of each container task, in the order in which kfp.local runs them."""
        return [name for name, _ in self._walk(self.spec["root"]["dag"], frozenset())]

    @property
    def images(self) -> set[str]:
        """Images of all components."""
        return {component.image for component in self._components.values()}

    @property
    def exit_handler(self) -> Component | None:
        """The component that runs last, whatever happened before."""
        tasks = self.spec["root"]["dag"]["tasks"].values()
        last = [task for task in tasks if task.get("triggerPolicy", {}).get("strategy") == RUNS_LAST]
        return self.component(last[0]["componentRef"]["name"].removeprefix(COMPONENT_PREFIX)) if last else None

    def select(self, wanted: str, flag: str) -> set[str]:
        """Names of the components that a person means by a name.

        Args:
            wanted: a component (`quantize-int8`) or a step (`quantize`).
            flag: where it was given, for the message.

        Raises:
            ConfigError: there is none.
        """
        found = {component.name for component in self._components.values() if component.is_named(wanted)}
        if not found:
            raise ConfigError(f"{flag} {wanted}: no such step: must be one of {', '.join(dict.fromkeys(self.order))}")
        return found

    def from_on(self, start: set[str]) -> set[str]:
        """These components, and all that depend on them."""
        return {name for name, below in self._walk(self.spec["root"]["dag"], frozenset(start)) if below}

    def _component(self, key: str) -> Component | None:
        definition = self.spec["components"][key]
        executor = definition.get("executorLabel")
        container = self.spec["deploymentSpec"]["executors"].get(executor, {}).get("container")
        if container is None:
            return None
        timeout = self._platform.get(executor, {}).get("activeDeadlineSeconds")
        return Component(
            name=key.removeprefix(COMPONENT_PREFIX),
            definition=definition,
            program=(program := _program(container["command"])),
            step=_step(program),
            image=container["image"],
            timeout=None if timeout is None else float(timeout),
        )

    def _walk(self, dag: Mapping[str, Any], start: frozenset[str], below: bool = False) -> Iterator[tuple[str, bool]]:
        """Each container task's component, and whether it is in `start` or depends on one that is."""
        from kfp.local import graph_utils

        tasks: Mapping[str, Any] = dag["tasks"]
        marked: set[str] = set()
        stack = graph_utils.topological_sort({name: task.get("dependentTasks", []) for name, task in tasks.items()})
        for task in reversed(stack):
            key = tasks[task]["componentRef"]["name"]
            inherited = below or bool(marked.intersection(tasks[task].get("dependentTasks", [])))
            for name, is_below in self._walk_task(key, start, inherited):
                if is_below:
                    marked.add(task)
                yield name, is_below

    def _walk_task(self, key: str, start: frozenset[str], below: bool) -> Iterator[tuple[str, bool]]:
        definition = self.spec["components"][key]
        name = key.removeprefix(COMPONENT_PREFIX)
        if "dag" in definition:
            yield from self._walk(definition["dag"], start, below)
        elif name in self._components:
            yield name, below or name in start


def _step(program: Sequence[str]) -> str | None:
    """The step that a command line of `ava` runs: the one of whose words it has most."""
    words = tuple(program[1:])
    found = [spec for spec in STEPS.values() if words[: len(spec.words)] == spec.words]
    return max(found, key=lambda spec: len(spec.words)).name if found else None


def _program(command: Sequence[str]) -> list[str]:
    words = list(command)
    return words[words.index("ava") :] if "ava" in words else []
