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

from ava_core.config.schema import QuantizeConfig
from ava_core.data.shards import ShardedSplit
from ava_core.errors import AvaError
from ava_core.quantization.blockwise import BITS
from ava_core.quantization.decoding import PROMPT_TOKENS, decode_rates
from ava_core.quantization.export import export_onnx, onnx_bytes
from ava_core.quantization.graph import GRAPH_FILE, OPSET, WEIGHTS_FILE
from ava_core.quantization.original import RUNTIME_FILES, Original, load_original
from ava_core.quantization.parity import Parity, measure_parity
from ava_core.quantization.runtime import load_onnx
from ava_core.runtime.progress import Progress

log = logging.getLogger(__name__)
EXPORT_SEQUENCES = 2
"""Windows on which the unrounded graph is compared with PyTorch; rounding plays no part, so few are enough."""
EXPORT_TOLERANCE = 1e-3
"""Mean absolute error of logits from which the graph counts as wrong; rounding in float32 leaves about 1e-6."""


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
        parity_export_max_abs_error: of the logits, between PyTorch and the graph with float32 weights.
    Timings:
        decode_tokens_per_second: greedy, one sequence, with the KV cache.
        decode_speedup: that rate over the one of the PyTorch model, measured in turns.

    Args:
        config: the `quantize` section.
        scheme: int8 or int4.
        model: output of `ava train`.
        shards: output of `ava preprocess`; the validation split is used.
        output: an empty folder.
        state: holds what an earlier, killed run with the same arguments finished.
        threads: CPU threads of ONNX Runtime.
        progress: shows progress.

    Raises:
        AvaError: an input is missing or doesn't fit, or the exported graph doesn't compute what the model does.
        IntegrityError: an input is damaged.
    """
    original = load_original(model)
    split = ShardedSplit.open(shards, "validation")
    if split.vocab_size > original.model.config.vocab_size:
        raise AvaError(
            f"{shards}: its tokenizer has {split.vocab_size} entries, the model in {model} only"
            f" {original.model.config.vocab_size}: give the shards that the model was trained on"
        )
    done = _Finished(state)
    sequences = min(config.parity_sequences, -(-split.num_tokens // original.sequence_length))
    with progress.task("quantize", EXPORT_SEQUENCES + sequences + 2) as advance:
        exported = done.figures("export", lambda: _check_export(original, split, state, threads))
        advance(EXPORT_SEQUENCES)

        files = done.folder(
            scheme, lambda to: export_onnx(original.model, to, scheme=scheme, block_size=config.block_size)
        )
        for name in (GRAPH_FILE, WEIGHTS_FILE):
            shutil.copyfile(files / name, output / name)
        for name in RUNTIME_FILES:
            if (model / name).is_file():
                shutil.copyfile(model / name, output / name)
        advance(EXPORT_SEQUENCES + 1)

        quantized = load_onnx(output, threads)
        parity = done.figures(
            "parity",
            lambda: asdict(
                measure_parity(
                    original.model,
                    quantized,
                    split,
                    sequence_length=original.sequence_length,
                    sequences=sequences,
                    advance=lambda windows: advance(EXPORT_SEQUENCES + 1 + windows),
                )
            ),
        )
        advance(EXPORT_SEQUENCES + 1 + sequences)
        prompt = torch.from_numpy(split.tokens[:PROMPT_TOKENS].astype("int64"))[None]
        rates = done.figures(
            "decoding",
            lambda: dict(zip(("onnx", "torch"), decode_rates([quantized, original.model], prompt), strict=True)),
        )

    figures = _metrics(original, output, exported, parity)
    _write_record(output, scheme, config, figures)
    log.info(
        "quantize: %s: %.1f MB, %.1f times smaller than float32; %+.4f bits per byte; same experts for %.2f%% of tokens"
        " and layers, same likeliest next token for %.2f%%",
        scheme,
        figures["model_bytes"] / 1e6,
        figures["compression_ratio"],
        figures["parity_bits_per_byte_increase"],
        100 * figures["parity_expert_agreement"],
        100 * figures["parity_top1_agreement"],
    )
    return Quantized(
        metrics=figures,
        timings={"decode_tokens_per_second": rates["onnx"], "decode_speedup": rates["onnx"] / rates["torch"]},
    )


def _check_export(original: Original, split: ShardedSplit, state: Path, threads: int) -> dict[str, float]:
    """Parity of the graph with unrounded weights, which must compute what PyTorch does."""
    folder = state / "float32"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        export_onnx(original.model, folder)
        original.model.config.save_pretrained(folder)
        parity = measure_parity(
            original.model,
            load_onnx(folder, threads),
            split,
            sequence_length=original.sequence_length,
            sequences=EXPORT_SEQUENCES,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    gc.collect()  # a session holds a second copy of the weights
    require_same_model(parity)
    return asdict(parity)


def require_same_model(parity: Parity) -> None:
    """Refuse a graph whose logits differ from the model's by more than float32 rounding.

    Raises:
        AvaError: the mean error is above EXPORT_TOLERANCE, or not a number.
    """
    if not parity.mean_abs_error <= EXPORT_TOLERANCE:
        raise AvaError(
            f"the exported graph's logits differ from the model's by {parity.mean_abs_error:.3g} on average, more than"
            f" {EXPORT_TOLERANCE:g}: the ONNX export doesn't compute this model; please report its config.json"
        )


def _metrics(
    original: Original, output: Path, exported: dict[str, float], parity: dict[str, float]
) -> dict[str, float]:
    runtime = [output / name for name in (GRAPH_FILE, WEIGHTS_FILE, *RUNTIME_FILES)]
    return {
        "model_bytes": sum(path.stat().st_size for path in runtime if path.is_file()),
        "compression_ratio": 4 * original.num_parameters / onnx_bytes(output),
        "parity_export_max_abs_error": exported["max_abs_error"],
        **{f"parity_{name}": value for name, value in parity.items()},
    }


def _write_record(output: Path, scheme: str, config: QuantizeConfig, figures: dict[str, float]) -> None:
    record = {
        "scheme": scheme,
        "bits": BITS[scheme],
        "block_size": config.block_size,
        "scales": "bfloat16",
        "float32": ["router", "norms", "constant experts", "activations"],
        "onnx_opset": OPSET,
        "parity": {
            name.removeprefix("parity_"): value for name, value in figures.items() if name.startswith("parity_")
        },
    }
    (output / "quantization.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


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
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(figures))
        partial.replace(path)
        return figures

    def folder(self, name: str, fill: Callable[[Path], None]) -> Path:
        """The folder kept under `name`, filled by `fill` if there is none."""
        folder, partial = self.state / name, self.state / f"{name}.partial"
        if not folder.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            fill(partial)
            partial.rename(folder)
        return folder
