"""What a step takes and gives, as types; the steps themselves are in `ava_core.steps.table`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Artifact = Literal["Artifact", "ClassificationMetrics", "Dataset", "HTML", "Markdown", "Model"]
"""Classes of `kfp.dsl`, by which Kubeflow's pages know how to show something."""


def flag(name: str) -> str:
    """The flag of an input, a choice or an export."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What a finished output is, whichever step made it: several steps may give the same kind.

    Attributes:
        name: what it is called.
        artifact: what it is to Kubeflow.
    """

    name: str
    artifact: Artifact = "Artifact"


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A folder that a step reads.

    Attributes:
        name: name of the input in manifests and components; the flag is `--name`.
        kind: the output that it has to be, whose manifest is verified; None for a folder that no step made, such as a
            raw corpus.
        help: one line for `--help`; empty: output folder of the steps that give its kind.
        description: one line for the component; empty: output of the steps that give its kind.
        required: refuse to start without it.
        repeated: the flag may be given several times. A component has one input for each of the values of the flag that
            tells the outputs of the giving step apart.
        registered: the flag may name a registered model, as models:/NAME@ALIAS, too.
        where_made: the pipeline's runners give it only where one of their steps makes it.
        by_hand: only for people at a shell; the stages of DVC and the components don't know it.
        setting: dotted key of the configuration that says the same as the flag, which wins: a folder, or a registered
            model. It enters the step's key by the contents of what it names. Where the configuration names something,
            DVC's stage finds it there, and the graph gets an input for it unless it has `beside`.
        beside: name of the input that relative paths in `setting` count from, where a container finds them; empty: the
            current folder.
    """

    name: str
    kind: Kind | None = None
    help: str = ""
    description: str = ""
    required: bool = True
    repeated: bool = False
    registered: bool = False
    where_made: bool = False
    by_hand: bool = False
    setting: str = ""
    beside: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A flag with a closed set of values that changes the result.

    Attributes:
        name: the flag is `--name`.
        help: one line for `--help`.
        values: what may be given.
        listed: key of the configuration that lists the values for which the pipeline runs the step.
    """

    name: str
    help: str
    values: tuple[str, ...]
    listed: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A part of the finished output that Kubeflow wants by itself; the flag is `--name FILE`, and nobody else gives it.

    Attributes:
        name: name of the component's output.
        help: for `--help`, after "For Kubeflow: ".
        file: the file of the output folder to copy, relative; None for a figure.
        artifact: what the file is to Kubeflow.
        metadata: the file is a JSON object, and the artifact's metadata too: Kubeflow's pages draw some kinds from it.
        metric: the figure of metrics.json to write as JSON; None for a file.
        boolean: the figure is 0 or 1 and written as false or true.
    """

    name: str
    help: str
    file: str | None = None
    artifact: Artifact = "Artifact"
    metadata: bool = False
    metric: str | None = None
    boolean: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSpec:
    """One step of the pipeline.

    Attributes:
        name: the subcommand of `ava`, the DVC stage, the component.
        summary: one line for `--help`.
        output: what the output folder is called: DVC's below `outputs/`, the component's output.
        kind: what the output folder is, for the steps that take one.
        sections: top-level configuration keys that the step reads; only they enter its key.
        function: the library function that computes it, `module:function`. What its module and the step's command
            import enters the step's key: see `ava_core.runtime.code`.
        inputs: the folders it reads.
        choices: flags that change the result.
        metrics: names in metrics.json that always exist.
        timings: names in OUTPUT.timings.json that always exist.
        headlines: those of both that a table of runs shows.
        exports: parts of the output that can be written to files of their own as well.
        descriptions: of the component's parameters, where they say more than for other steps.
        cacheable: False for a step that looks or writes outside its folders, which is never skipped.
        invoked: words after `ava` that run it; empty: its name is a command of its own.
        training: the section with the settings of its training, for a step that trains.
    """

    name: str
    summary: str
    output: str
    kind: Kind
    sections: tuple[str, ...]
    function: str
    inputs: tuple[Input, ...] = ()
    choices: tuple[Choice, ...] = ()
    metrics: tuple[str, ...] = ()
    timings: tuple[str, ...] = ()
    headlines: tuple[str, ...] = ()
    exports: tuple[Export, ...] = ()
    descriptions: Mapping[str, str] = field(default_factory=dict)
    cacheable: bool = True
    invoked: tuple[str, ...] = ()
    training: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """What runs it, after `ava`."""
        return self.invoked or (self.name,)

    @property
    def pipeline_inputs(self) -> tuple[Input, ...]:
        """The inputs that the pipeline's runners always give."""
        return tuple(port for port in self.inputs if not port.by_hand and not port.setting and not port.where_made)

    @property
    def inputs_where_made(self) -> tuple[Input, ...]:
        """The inputs that the pipeline's runners give where a step of theirs makes them."""
        return tuple(port for port in self.inputs if port.where_made)

    @property
    def named_inputs(self) -> tuple[Input, ...]:
        """The inputs that the configuration may name."""
        return tuple(port for port in self.inputs if port.setting)
