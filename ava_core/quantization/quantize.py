"""The work of `ava quantize`: export, round, measure, write down."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ava_core.config.quantize import QuantizeConfig
from ava_core.data.reencoding import open_tokens
from ava_core.data.shards import ShardedSplit
from ava_core.data.tokenizer import copy_tokenizer
from ava_core.errors import AvaError
from ava_core.files import write_json
from ava_core.onnx.block_weights import Stored
from ava_core.onnx.export import export_onnx, onnx_bytes
from ava_core.onnx.genai import write_genai_config
from ava_core.onnx.graph import GRAPH_FILE, OPSET, WEIGHTS_FILE
from ava_core.onnx.runtime import load_onnx
from ava_core.origin import carry_origin
from ava_core.progress import Progress
from ava_core.quantization.bounds import require_parity
from ava_core.quantization.consistency import cached_error, padded_error
from ava_core.quantization.decoding import PROMPT_TOKENS, decode_rates
from ava_core.quantization.original import CONFIGURATIONS, RUNTIME_FILES, Original, load_original
from ava_core.quantization.parity import Parity, measure_parity
from ava_core.quantization.plan import Format
from ava_core.quantization.readback import verify_weights
from ava_core.quantization.rounding import bits_per_weight, plan, round_model
from ava_core.quantization.verify import verify_experts, verify_file, verify_rounding

log = logging.getLogger(__name__)
EXPORT_SEQUENCES = 2
"""Windows on which the unrounded graph is compared with PyTorch; rounding plays no part, so few are enough."""
LONG_SEQUENCES = 2
"""Windows as long as the model's context, where that is longer than the training's."""
PARTS = ("plan", "round", "export", "compare")


@dataclass(frozen=True)
class Quantized:
    """Figures of one run; see `quantize`."""

    metrics: dict[str, float]
    timings: dict[str, float]


def quantize(
    *,
    config: QuantizeConfig,
    scheme: str,
    model: Path,
    shards: Path,
    output: Path,
    state: Path,
    threads: int,
    progress: Progress,
) -> Quantized:
    """Write the model with rounded weights as a folder for `load_onnx`, and how close it is to the original.

    Metrics beside those of `Parity` (as `parity_*`):
        model_bytes: all files that are needed at run time, tokenizer included.
        compression_ratio: bytes of the parameters in float32 over those of the ONNX files; larger is better.
        bits_per_weight: mean over the matrices, scales included.
        parity_export_max_abs_error, parity_export_mean_abs_error: of the logits, between PyTorch and the graph with
            float32 weights.
        parity_cached_mean_abs_error, parity_padded_mean_abs_error: between ways to run the same graph.
        parity_long_context_*: over windows as long as the model's context, where it is longer than the training's.
    Timings:
        decode_tokens_per_second: greedy, one sequence, with the KV cache.
        decode_speedup: that rate over the one of the PyTorch model, measured in turns.

    Args:
        config: the `quantize` section.
        scheme: name of a scheme, see `ava_core.steps.schemes`.
        model: a model folder.
        shards: output of `ava preprocess`; calibrated on the training split, compared on the validation split. Their
            text is encoded anew where they have another tokenizer than the model.
        output: an empty folder.
        state: holds what an earlier, killed run with the same arguments finished.
        threads: CPU threads of ONNX Runtime.
        progress: shows progress.

    Raises:
        AvaError: an input is missing or doesn't fit.
        ConfigError: the blocks don't fit the model's shapes.
        ParityError: the exported model is further from its original than the bounds allow.
        IntegrityError: an input is damaged.
    """
    original = load_original(model)
    split, calibration = open_tokens(model, shards, "validation"), open_tokens(model, shards, "train")
    if split.vocab_size > original.model.config.vocab_size:
        raise AvaError(
            f"{shards}: their tokens are of {split.vocab_size} entries, the model in {model} has"
            f" {original.model.config.vocab_size}: they don't belong together"
        )
    done = _Finished(state)
    with progress.task("quantize", len(PARTS)) as advance:
        chosen = _plan(original, scheme, config, calibration, done)
        advance(1)
        rounded = round_model(original.model, chosen, config)
        verify_rounding(original.model, rounded)
        advance(2)
        _export(original, rounded, config, done.state / scheme, output)
        for name in CONFIGURATIONS:
            if (model / name).is_file():
                shutil.copyfile(model / name, output / name)
        copy_tokenizer(model, output, original.model.config.max_position_embeddings)
        carry_origin(model, output)
        if config.portable:
            write_genai_config(output, original.model.config)
        verify_weights(output, original.model, rounded)
        if not config.portable:
            verify_experts(output, rounded)
        advance(3)
        parity = done.figures(
            "parity",
            lambda: _parity(original, output, split, config, threads, state, lambda share: advance(3 + share)),
        )
        figures = _metrics(original, output, parity, chosen)
        _log(scheme, figures)
        log.debug("quantize: %s: %s", scheme, json.dumps(figures, sort_keys=True))
        require_parity(parity, scheme, config)
        prompt = torch.from_numpy(split.tokens[:PROMPT_TOKENS].astype("int64"))[None]
        rates = done.figures(
            "decoding",
            lambda: dict(
                zip(("onnx", "torch"), decode_rates([load_onnx(output, threads), original.model], prompt), strict=True)
            ),
        )
    _write_record(output, scheme, config, chosen, figures)
    return Quantized(
        metrics=figures,
        timings={"decode_tokens_per_second": rates["onnx"], "decode_speedup": rates["onnx"] / rates["torch"]},
    )


def _plan(
    original: Original, scheme: str, config: QuantizeConfig, calibration: ShardedSplit, done: _Finished
) -> dict[str, Format]:
    """A format per group of matrices, kept by its numbers."""

    def measure() -> dict[str, Any]:
        chosen = plan(original.model, scheme, config, calibration, original.sequence_length)
        return {name: asdict(form) for name, form in chosen.items()}

    return {name: Format(**form) for name, form in done.figures("plan", measure).items()}


def _export(original: Original, rounded: dict[str, Stored], config: QuantizeConfig, folder: Path, output: Path) -> None:
    """Write the graph, copy it to the output, and hold the copy against what was to be written."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    digests = export_onnx(
        original.model,
        folder,
        rounded=rounded,
        portable=config.portable,
        accuracy_level=4 if config.rounded_activations else 0,
    )
    for name in (GRAPH_FILE, WEIGHTS_FILE):
        shutil.move(folder / name, output / name)
    verify_file(output, digests)


def _parity(
    original: Original,
    output: Path,
    split: ShardedSplit,
    config: QuantizeConfig,
    threads: int,
    state: Path,
    advance: Callable[[float], None],
) -> dict[str, float]:
    """All figures of the exported model beside its original, without their `parity_`."""
    sequences = min(config.parity_sequences, -(-split.num_tokens // original.sequence_length))
    exported = _unrounded(original, split, config.portable, state, threads)
    quantized = load_onnx(output, threads)
    context = original.model.config.max_position_embeddings
    figures = asdict(
        measure_parity(
            original.model,
            quantized,
            split,
            sequence_length=original.sequence_length,
            sequences=sequences,
            advance=lambda windows: advance(windows / sequences),
        )
    )
    figures["export_max_abs_error"], figures["export_mean_abs_error"] = exported.max_abs_error, exported.mean_abs_error
    figures["cached_mean_abs_error"] = cached_error(quantized, split, original.sequence_length)
    figures["padded_mean_abs_error"] = padded_error(quantized, split, original.sequence_length)
    if context > original.sequence_length and split.num_tokens > context:
        longer = measure_parity(original.model, quantized, split, sequence_length=context, sequences=LONG_SEQUENCES)
        for name in ("increase_percent", "expert_agreement", "top1_agreement"):
            figures[f"long_context_{name}"] = getattr(longer, name)
    return figures


def _unrounded(original: Original, split: ShardedSplit, portable: bool, state: Path, threads: int) -> Parity:
    """Parity of the graph with float32 weights, which must compute what PyTorch does."""
    folder = state / "float32"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        export_onnx(original.model, folder, portable=portable)
        original.model.config.save_pretrained(folder)
        return measure_parity(
            original.model,
            load_onnx(folder, threads),
            split,
            sequence_length=original.sequence_length,
            sequences=EXPORT_SEQUENCES,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect()  # a session holds a second copy of the weights


def _log(scheme: str, figures: dict[str, float]) -> None:
    log.info(
        "quantize: %s: %.1f MB, %.3f of float32; %+.4f bits per byte; same experts for %.2f%% of tokens and layers,"
        " same likeliest next token for %.2f%%",
        scheme,
        figures["model_bytes"] / 1e6,
        1 / figures["compression_ratio"],
        figures["parity_bits_per_byte_increase"],
        100 * figures["parity_expert_agreement"],
        100 * figures["parity_top1_agreement"],
    )


def _metrics(original: Original, output: Path, parity: dict[str, float], chosen: dict[str, Format]) -> dict[str, float]:
    runtime = [output / name for name in (GRAPH_FILE, WEIGHTS_FILE, *RUNTIME_FILES)]
    return {
        "model_bytes": sum(path.stat().st_size for path in runtime if path.is_file()),
        "compression_ratio": 4 * original.num_parameters / onnx_bytes(output),
        "bits_per_weight": bits_per_weight(original.model, chosen),
        **{f"parity_{name}": value for name, value in parity.items()},
    }


def _write_record(
    output: Path, scheme: str, config: QuantizeConfig, chosen: dict[str, Format], figures: dict[str, float]
) -> None:
    record = {
        "scheme": scheme,
        "graph": "portable" if config.portable else "fused",
        "formats": {name: asdict(form) for name, form in chosen.items()},
        "symmetric": config.symmetric,
        "scales": "bfloat16",
        "float32": ["router", "norms", "constant experts", "activations"],
        "onnx_opset": OPSET,
        "parity": {
            name.removeprefix("parity_"): value for name, value in figures.items() if name.startswith("parity_")
        },
    }
    write_json(output / "quantization.json", record)


class _Finished:
    """Parts of the work that are done, kept in the state folder; each appears whole or not at all."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def figures(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures kept under `name`, or those that `compute` gives; JSON keeps every bit of a float."""
        path = self.state / f"{name}.json"
        if path.is_file():
            log.info("quantize: %s: measured before the interruption", name)
            return json.loads(path.read_text())
        figures = compute()
        write_json(path, figures)
        return figures
