"""The step table: what each step takes and gives, in the order of the pipeline.

The one place that says so: the command line (`ava_core.cli`), the components (`components/`), `kubernetes.steps` of the
configuration, dvc.yaml (`python -m pipelines.stages`) and the tables of figures are made from it.
"""

from __future__ import annotations

from ava_core.steps.alignment import ALIGNMENT, ALIGNMENT_DATA
from ava_core.steps.indexing import INDEXING
from ava_core.steps.kinds import (
    DATA_IN,
    DECISION,
    EVALUATION,
    EVALUATION_IN,
    INDEX_IN,
    MODEL,
    MODEL_IN,
    QUANTIZED,
    QUANTIZED_IN,
    REGISTRATION,
    SHARDS,
    SHARDS_IN,
)
from ava_core.steps.schemes import SCHEMES
from ava_core.steps.spec import Choice, Export, Input, StepSpec

STEPS: dict[str, StepSpec] = {
    spec.name: spec
    for spec in (
        StepSpec(
            name="preprocess",
            summary="Clean, deduplicate, split and tokenise the corpus into shards.",
            output="shards",
            kind=SHARDS,
            sections=("data", "tokenizer"),
            function="ava_core.data.preprocess:preprocess",
            inputs=(
                DATA_IN,
                Input(
                    name="tokenizer",
                    help="Finished tokenizer to use, as tokenizer.from: folder of a tokenizer, a model or shards, a"
                    " tokenizer.json, or models:/NAME@ALIAS. Without it, one is learned.",
                    description="Finished tokenizer to use.",
                    required=False,
                    setting="tokenizer.from",
                    beside="data",
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
        *ALIGNMENT_DATA,
        StepSpec(
            name="train",
            summary="Train the model with DeepSpeed.",
            output="model",
            kind=MODEL,
            sections=("seed", "model", "train"),
            function="ava_core.training.train:train",
            training="train",
            inputs=(
                SHARDS_IN,
                Input(
                    name="init",
                    kind=MODEL,
                    help="Model to begin from, on the same text or another, as train.init: its folder, or"
                    " models:/NAME@ALIAS. Its weights are kept; optimiser and schedule begin anew, but for"
                    " --keep-optimizer and train.init_schedule.",
                    description="Model to begin from.",
                    required=False,
                    setting="train.init",
                ),
                Input(
                    name="resume",
                    help="Checkpoint of another training of the same model to go on from: weights, state of the"
                    " optimiser, schedule (anew with train.init_schedule). Of a finished model: --init.",
                    required=False,
                    by_hand=True,
                ),
                Input(
                    name="teacher",
                    kind=MODEL,
                    help="Model whose predictions are imitated beside the text (distillation), as train.teacher.model:"
                    " its folder, or models:/NAME@ALIAS. It has the shards' tokenizer.",
                    description="Model whose predictions are imitated.",
                    required=False,
                    setting="train.teacher.model",
                ),
                Input(
                    name="reference",
                    kind=MODEL,
                    help="Trained model whose losses order the curriculum (difficulty: reference).",
                    required=False,
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
        *ALIGNMENT,
        INDEXING,
        StepSpec(
            name="quantize",
            summary="Export to ONNX, quantise the weights, and measure the parity with the float model.",
            output="quantized",
            kind=QUANTIZED,
            sections=("quantize",),
            function="ava_core.quantization.quantize:quantize",
            inputs=(MODEL_IN, SHARDS_IN),
            choices=(
                Choice(
                    name="scheme",
                    help="Scheme of quantisation.",
                    values=tuple(SCHEMES),
                    listed="quantize.schemes",
                ),
            ),
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
            kind=EVALUATION,
            sections=("seed", "evaluate"),
            function="ava_core.evaluation.evaluate:evaluate",
            inputs=(MODEL_IN, SHARDS_IN, QUANTIZED_IN, INDEX_IN),
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
                Export(name="report", help="file to copy the report to.", file="report.html", artifact="HTML"),
                Export(name="summary", help="file to copy the summary to.", file="summary.md", artifact="Markdown"),
                Export(
                    name="classification",
                    help="file to copy the ROC curve and the confusion matrix to.",
                    file="classification.json",
                    artifact="ClassificationMetrics",
                    metadata=True,
                ),
            ),
        ),
        StepSpec(
            name="gate",
            summary="Decide from the evaluation, and from the present champion's, whether a model may become champion.",
            output="gate",
            kind=DECISION,
            sections=("register",),
            function="ava_core.registry.gate:gate",
            inputs=(MODEL_IN, QUANTIZED_IN, EVALUATION_IN),
            metrics=("passed", "bounds_checked", "bounds_failed", "smallest_margin"),
            timings=("wall_seconds",),
            headlines=("passed", "bounds_checked", "bounds_failed"),
            exports=(
                Export(name="passed", help="file to write true or false to.", metric="passed", boolean=True),
                Export(
                    name="summary",
                    help="file to copy the decision to, as Markdown.",
                    file="gate.md",
                    artifact="Markdown",
                ),
            ),
            descriptions={
                "tracking_uri": "Address of MLflow, whose champion is asked for; empty, as the container's"
                " environment says.",
            },
            cacheable=False,
        ),
        StepSpec(
            name="register",
            summary="Register the model in MLflow, and promote it to champion if the gate let it through.",
            output="registration",
            kind=REGISTRATION,
            sections=("register",),
            function="ava_core.registry.register:register",
            inputs=(
                MODEL_IN,
                QUANTIZED_IN,
                EVALUATION_IN,
                Input(
                    name="gate",
                    kind=DECISION,
                    help="Output folder of `ava gate`; without it, register decides.",
                    description="Output of gate; compared again with whoever is champion when the alias moves.",
                    required=False,
                ),
            ),
            metrics=("promoted", "model_version"),
            timings=("wall_seconds",),
            headlines=("model_version", "promoted"),
            exports=(
                Export(name="promoted", help="file to write true or false to.", metric="promoted", boolean=True),
                Export(name="model_version", help="file to write the version to.", metric="model_version"),
            ),
            descriptions={"git_commit": "Commit of the code and parameters, recorded with the run."},
            cacheable=False,
        ),
    )
}
