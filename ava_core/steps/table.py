"""The step table: what each step takes and gives.

The one place that says so; the command line (`ava_core.cli`), the components (`components/`) and the test over
dvc.yaml read it. Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass

from ava_core.config.schemes import SCHEMES


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A folder that a step reads.

    Attributes:
        name: name of the input in manifests and components; the flag is `--name`.
        help: one line for `--help`.
        required: refuse to start without it.
        repeated: the flag may be given several times.
        verified: the folder is another step's output, so its manifest is checked; False for raw corpora.
        kind: what that output is called, where the flag has another name.
        by_hand: only for people at a shell; the stages of DVC and the components don't know it.
    """

    name: str
    help: str
    required: bool = True
    repeated: bool = False
    verified: bool = True
    kind: str | None = None
    by_hand: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A flag with a closed set of values that changes the result."""

    name: str
    help: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """A part of the finished output that Kubeflow wants by itself; the flag is `--name FILE`, and nobody else gives it.

    Attributes:
        name: name of the component's output.
        help: one line for `--help`.
        file: the file of the output folder to copy, relative; None for a figure.
        metric: the figure of metrics.json to write as JSON; None for a file.
        boolean: the figure is 0 or 1 and written as false or true.
        metadata: the file is a JSON object, and the artifact's metadata too: Kubeflow's pages draw some kinds from it.
    """

    name: str
    help: str
    file: str | None = None
    metric: str | None = None
    boolean: bool = False
    metadata: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSpec:
    """One step of the pipeline.

    Attributes:
        name: the subcommand of `ava`, the DVC stage, the component.
        summary: one line for `--help`.
        output: what the output folder is called among other steps' inputs.
        sections: top-level configuration keys that the step reads; only they enter its key.
        function: the library function that computes it, `module:function`. What its module and the step's command
            import enters the step's key: see `ava_core.runtime.code`.
        inputs: the folders it reads.
        choices: flags that change the result.
        metrics: names in metrics.json that always exist.
        timings: names in OUTPUT.timings.json that always exist.
        headlines: those of both that a table of runs shows.
        exports: parts of the output that can be written to files of their own as well.
        cacheable: False for a step that looks or writes outside its folders, which is never skipped.
    """

    name: str
    summary: str
    output: str
    sections: tuple[str, ...]
    function: str
    inputs: tuple[Input, ...] = ()
    choices: tuple[Choice, ...] = ()
    metrics: tuple[str, ...] = ()
    timings: tuple[str, ...] = ()
    headlines: tuple[str, ...] = ()
    exports: tuple[Export, ...] = ()
    cacheable: bool = True

    @property
    def pipeline_inputs(self) -> tuple[Input, ...]:
        """The inputs that the pipeline's runners give."""
        return tuple(port for port in self.inputs if not port.by_hand)


_SHARDS = Input(name="shards", help="Output folder of `ava preprocess`.")
_MODEL = Input(name="model", help="Output folder of `ava train`.")
_QUANTIZED = Input(
    name="quantized", help="Output folder of `ava quantize`; may be given several times.", required=False, repeated=True
)
_EVALUATION = Input(name="evaluation", help="Output folder of `ava evaluate`.")

STEPS: dict[str, StepSpec] = {
    spec.name: spec
    for spec in (
        StepSpec(
            name="preprocess",
            summary="Clean, deduplicate, split and tokenise the corpus into shards.",
            output="shards",
            sections=("data", "tokenizer"),
            function="ava_core.data.preprocess:preprocess",
            inputs=(
                Input(
                    name="data",
                    help="Folder with the corpus; sources with a relative path are read from it.",
                    required=False,
                    verified=False,
                ),
            ),
            metrics=(
                "documents_in",
                "documents_kept",
                "duplicates_removed",
                "train_tokens",
                "validation_tokens",
                "test_tokens",
                "train_bytes",
                "validation_bytes",
                "test_bytes",
                "vocab_size",
                "bytes_per_token",
            ),
            timings=("megabytes_per_second", "wall_seconds"),
            headlines=("documents_kept", "train_tokens", "vocab_size"),
        ),
        StepSpec(
            name="train",
            summary="Train the model with DeepSpeed.",
            output="model",
            sections=("seed", "model", "train"),
            function="ava_core.launching.launch:launch",
            inputs=(
                _SHARDS,
                Input(
                    name="resume",
                    help="Checkpoint of another training of the same model to begin from.",
                    required=False,
                    verified=False,
                    by_hand=True,
                ),
                Input(
                    name="reference",
                    help="Trained model whose losses order the curriculum (difficulty: reference).",
                    required=False,
                    kind="model",
                    by_hand=True,
                ),
            ),
            metrics=(
                "train_loss",
                "validation_loss",
                "validation_bits_per_byte",
                "tokens_seen",
                "steps",
                "parameters",
                "active_parameters",
            ),
            timings=(
                "tokens_per_second",
                "wall_seconds",
                "training_seconds",
                "startup_seconds",
                "overhead_share",
                "model_flops_utilization",
                "peak_memory_bytes",
                "estimated_memory_bytes",
            ),
            headlines=("validation_bits_per_byte", "steps", "tokens_per_second"),
        ),
        StepSpec(
            name="quantize",
            summary="Export to ONNX, quantise the weights, and measure the parity with the float model.",
            output="quantized",
            sections=("quantize",),
            function="ava_core.quantization.quantize:quantize",
            inputs=(_MODEL, _SHARDS),
            choices=(Choice(name="scheme", help="Type of the quantised weights.", values=SCHEMES),),
            metrics=(
                "model_bytes",
                "compression_ratio",
                "parity_max_abs_error",
                "parity_top1_agreement",
                "parity_expert_agreement",
            ),
            timings=("decode_tokens_per_second", "decode_speedup", "wall_seconds"),
            headlines=("compression_ratio", "parity_top1_agreement"),
        ),
        StepSpec(
            name="evaluate",
            summary="Score the test split, sample, and write the report.",
            output="evaluation",
            sections=("seed", "evaluate"),
            function="ava_core.evaluation.evaluate:evaluate",
            inputs=(_MODEL, _SHARDS, _QUANTIZED),
            metrics=(
                "test_loss",
                "test_perplexity",
                "test_bits_per_byte",
                "test_accuracy",
                "test_top5_accuracy",
                "expert_load_cv",
                "expert_entropy",
                "dead_experts",
                "experts_per_token",
                "distinct_2",
                "repetition_4gram",
            ),
            timings=("wall_seconds",),
            headlines=("test_bits_per_byte", "test_perplexity", "test_accuracy"),
            exports=(
                Export(name="report", help="Write the report here as well.", file="report.html"),
                Export(name="summary", help="Write the summary here as well.", file="summary.md"),
                Export(
                    name="classification",
                    help="Write the ROC curve and the confusion matrix here as well.",
                    file="classification.json",
                    metadata=True,
                ),
            ),
        ),
        StepSpec(
            name="gate",
            summary="Decide from the evaluation, and from the present champion's, whether a model may become champion.",
            output="gate",
            sections=("register",),
            function="ava_core.registry.gates.gate:gate",
            inputs=(_MODEL, _QUANTIZED, _EVALUATION),
            metrics=("passed", "bounds_checked", "bounds_failed", "smallest_margin"),
            timings=("wall_seconds",),
            headlines=("passed", "bounds_checked", "bounds_failed"),
            exports=(
                Export(name="passed", help="Write true or false here as well.", metric="passed", boolean=True),
                Export(name="summary", help="Write the decision as Markdown here as well.", file="gate.md"),
            ),
            cacheable=False,
        ),
        StepSpec(
            name="register",
            summary="Register the model in MLflow, and promote it to champion if the gate let it through.",
            output="registration",
            sections=("register",),
            function="ava_core.registry.register:register",
            inputs=(
                _MODEL,
                _QUANTIZED,
                _EVALUATION,
                Input(name="gate", help="Output folder of `ava gate`; without it, register decides.", required=False),
            ),
            metrics=("promoted", "model_version"),
            timings=("wall_seconds",),
            headlines=("model_version", "promoted"),
            exports=(
                Export(name="promoted", help="Write true or false here as well.", metric="promoted", boolean=True),
                Export(name="model_version", help="Write the version here as well.", metric="model_version"),
            ),
            cacheable=False,
        ),
    )
}
