"""The lines that close a local run: what ran, what came out, and where it is. Reads only what the steps wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ava_core.steps.schemes import SCHEMES
from ava_core.steps.table import STEPS
from pipelines.results import PipelineResult, TaskResult, last_lines

HEADER = ("step", "status", "seconds", "cached", "figures")
LABEL_WIDTH = 14
SAMPLES = 3
SAMPLE_CHARACTERS = 240
TAIL_LINES = 12


def task_table(result: PipelineResult) -> Iterator[str]:
    """A line for each task: name, status, seconds, whether finished work was reused, and its key figures."""
    rows = [HEADER]
    for component in dict.fromkeys(result.order):
        ran = [task for task in result.tasks if task.component == component]
        rows += [_row(task) for task in ran] or [(component, "not run", "", "", "")]
    rows.append(("total", "", f"{sum(task.seconds for task in result.tasks):.1f}", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        name, status, seconds, cached, figures = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        yield f"{name}  {status}  {seconds.strip():>{widths[2]}}  {cached}  {figures}".rstrip()


def _row(task: TaskResult) -> tuple[str, str, str, str, str]:
    step = next((step for step in STEPS if task.component == step or task.component.startswith(f"{step}-")), "")
    named = [name for name in (STEPS[step].headlines if step else ()) if name in task.figures]
    figures = ", ".join(f"{name} {_short(task.figures[name])}" for name in named)
    return task.name, task.status, f"{task.seconds:.1f}", "yes" if task.cached else "no", figures


def _short(value: float) -> str:
    """Counts whole, with thousands separated; other figures with four significant digits."""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.4g}"


def outcome(result: PipelineResult) -> Iterator[str]:
    """Figures, gate, samples and addresses of a run that succeeded."""
    evaluation = _require(result, "evaluate") / "evaluation"
    registration = _read_json(_require(result, "register") / "registration" / "registration.json")
    figures = _read_json(evaluation / "metrics.json")
    yield _line(
        "test split",
        f"{figures['test_bits_per_byte']:.4f} bits per byte, perplexity {figures['test_perplexity']:.2f} per token",
    )
    for scheme in SCHEMES:
        folder = result.folder(f"quantize-{scheme}".replace("_", "-"))  # as KFP writes names
        if folder is not None:
            yield _line(
                f"{scheme} model", _quantized(scheme, _read_json(folder / "quantized" / "metrics.json"), figures)
            )
    yield from _decision(registration)
    yield ""
    yield "The model wrote:"
    for text in pick_samples(_read_json(evaluation / "evaluation.json")["samples"]):
        yield ""
        yield from (f"    {line}" for line in text.splitlines())
    yield ""
    store = registration["tracking_uri"]
    yield _line(
        "MLflow run", _pipeline_page(result) or registration.get("run_url") or f"{registration['run_id']} in {store}"
    )
    yield _line("registry page", registration.get("model_url") or f"none: {store} is no server")
    yield _line("report", (evaluation / "report.html").as_uri())


def _pipeline_page(result: PipelineResult) -> str | None:
    """Page of the pipeline's run in MLflow, which has those of the steps; the exit handler notes it."""
    folder = result.folder("record-outcome")
    outcome = folder / "outcome" / "outcome.json" if folder else None
    return _read_json(outcome).get("run_url") if outcome and outcome.is_file() else None


def failure(result: PipelineResult, again: str) -> Iterator[str]:
    """Which step failed, the end of its log, and how to go on.

    Args:
        result: a run that failed.
        again: the command that goes on.
    """
    task = result.failed
    if task is None:
        yield f"failed: {result.fault or 'not every step ran'}"
    else:
        yield f"{task.name} failed: {task.fault}"
        tail = last_lines(task.log, TAIL_LINES)
        if tail:
            yield f"the end of {task.log}:"
            yield from (f"    {line}" for line in tail)
    if page := _pipeline_page(result):
        yield f"MLflow run: {page}"
    yield f"go on, once the cause is mended: {again}"
    yield "finished steps are taken again as they are, and an interrupted one goes on from its last durable point"


def pick_samples(samples: list[dict[str, Any]]) -> list[str]:
    """Three texts of the trained model, by nucleus sampling if there are enough, cut at the end of a sentence."""
    texts = [sample for sample in samples if sample["model"] == "float"]
    ordered = sorted(texts, key=lambda sample: sample["strategy"] != "nucleus")
    return [cut_at_sentence(sample["text"], len(sample["prompt"])) for sample in ordered[:SAMPLES]]


def cut_at_sentence(text: str, start: int) -> str:
    """The text up to the last sentence that ends after `start` and within SAMPLE_CHARACTERS, else cut at a word."""
    # What a model writes may hold control characters, which a terminal would obey.
    text = "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)
    shown = text[:SAMPLE_CHARACTERS]
    ends = [match.end() for match in re.finditer(r"[.!?][\"')\]]*(?=\s|$)", shown) if match.end() > start]
    if ends:
        return shown[: ends[-1]].strip()
    if len(text) > SAMPLE_CHARACTERS and re.search(r"\s\S*$", shown):
        shown = re.sub(r"\s\S*$", "", shown)
    return shown.strip()


def _quantized(scheme: str, metrics: dict[str, float], figures: dict[str, float]) -> str:
    loss = figures[f"{scheme}_test_bits_per_byte"] - figures["test_bits_per_byte"]
    return (
        f"{metrics['model_bytes'] / 1e6:.1f} MB ({metrics['compression_ratio']:.1f} times smaller), "
        f"{loss:+.4f} bits per byte, same next token {metrics['parity_top1_agreement']:.2%}, "
        f"same experts {metrics['parity_expert_agreement']:.2%}, "
        f"largest difference of a logit {metrics['parity_max_abs_error']:.3g}"
    )


def _decision(registration: dict[str, Any]) -> Iterator[str]:
    aliases = ", ".join(f"@{alias}" for alias in registration["aliases"]) or "no alias"
    yield _line("registered", f"{registration['name']} version {registration['version']}: {aliases}")
    failed = [bound for bound in registration["decision"] if not bound["passed"]]
    if registration["promoted"]:
        yield _line("gate", "passed: promoted to champion")
    elif failed:
        for bound in failed:
            side, excess = "above", bound["value"] - bound["limit"]
            if bound.get("at_least"):
                side, excess = "below", -excess
            yield _line(
                "gate",
                f"refused: {bound['figure']} {bound['value']:.4f} is {excess:.4f} {side} {bound['limit']:.4f}"
                f" ({bound['bound']})",
            )
    else:
        yield _line("gate", f"passed, and not promoted: champion is version {registration['champion']} by now")


def _require(result: PipelineResult, name: str) -> Path:
    folder = result.folder(name)
    if folder is None:
        raise ValueError(f"{name} has left nothing: only a run that succeeded has an outcome")
    return folder


def _line(label: str, text: str) -> str:
    return f"{label:<{LABEL_WIDTH}}  {text}"


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
