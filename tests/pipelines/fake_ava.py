"""Stands in for the `ava` command: does what the step table promises with a file or two, or breaks it as told.

FAKE_FAULT is `STEP=FAULT`, or `STEP-SCHEME=FAULT`; FAKE_JOURNAL a file that gets a line for each call. It runs with the
python3 of a bare Debian too.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FIGURES = {
    "quantize": {
        "model_bytes": 7_400_000,
        "compression_ratio": 3.9,
        "parity_max_abs_error": 0.0312,
        "parity_top1_agreement": 0.9912,
        "parity_expert_agreement": 0.9987,
    },
    "evaluate": {"test_bits_per_byte": 2.0, "test_perplexity": 31.5}
    | {f"{scheme}_test_bits_per_byte": 2.0012 for scheme in ("int8", "int4")},
    "gate": {"passed": 1, "bounds_checked": 3, "bounds_failed": 0, "smallest_margin": 0.3},
}
CURVE = {"confidenceMetrics": [{"confidenceThreshold": 0.5, "falsePositiveRate": 0.1, "recall": 0.9}]}
BOOLEANS = ("passed", "promoted")
NUMBERS = ("model-version",)
PAGES = ("report", "summary")
SAMPLES = [
    {"model": model, "strategy": strategy, "prompt": prompt, "text": f"{prompt} {strategy} {model}.\nO, wherefore"}
    for model in ("int8", "float")
    for strategy in ("greedy", "beam", "nucleus")
    for prompt in ("To be, or", "ROMEO", "Enter")
]


def registration(value: str) -> dict:
    promoted = float(value) <= 2.3
    bound = {"bound": "max_bits_per_byte", "figure": "test_bits_per_byte", "value": float(value), "limit": 2.3}
    return {
        "name": "ava-moe",
        "version": 7,
        "aliases": ["challenger", "champion"] if promoted else ["challenger"],
        "promoted": promoted,
        "decision": [{**bound, "passed": promoted}],
        "run_id": "0123",
        "run_url": "http://127.0.0.1:5000/#/experiments/1/runs/0123",
        "model_url": "http://127.0.0.1:5000/#/models/ava-moe/versions/7",
        "tracking_uri": "http://127.0.0.1:5000",
    }


def main() -> None:
    step, *words = sys.argv[1:]
    forced = "--force" in words
    words = [word for word in words if word != "--force"]
    flags = {words[i][2:]: words[i + 1] for i in range(0, len(words), 2)}
    suffix = flags.get("scheme") or ("part" if "part" in flags else "")
    component = f"{step}-{suffix}" if suffix else step
    with Path(os.environ["FAKE_JOURNAL"]).open("a") as journal:
        record = {"component": component, "flags": flags, "pid": os.getpid(), "group": os.getpgid(0), "forced": forced}
        record |= {"environment": dict(os.environ), "user": os.getuid()}
        journal.write(json.dumps(record) + "\n")
    print(f"{component} at work", file=sys.stderr)
    failing, _, fault = os.environ.get("FAKE_FAULT", "").partition("=")
    fault = fault if failing in (step, component) else ""
    break_before(fault)
    output = Path(flags["output"])
    output.mkdir(parents=True)
    metrics = FIGURES.get(step, {"a_figure": 1.5, "another": 2})
    (output / "metrics.json").write_text(json.dumps(metrics))
    output.with_name(f"{output.name}.timings.json").write_text(json.dumps({"wall_seconds": 0.5}))
    if step == "evaluate":
        (output / "evaluation.json").write_text(json.dumps({"samples": SAMPLES}))
        (output / "report.html").write_text("<p>")
    if step == "register":
        (output / "registration.json").write_text(json.dumps(registration(os.environ.get("FAKE_VALUE", "2.0"))))
    artifacts = {output.name: entry(str(output), {"reused": fault == "reuse"}), **write_exports(flags)}
    if component not in ("record-outcome", "preprocess-part"):
        artifacts["metrics"] = entry("", metrics)
    Path(flags["executor-output"]).write_text(json.dumps({"artifacts": artifacts}))
    break_after(fault, flags, output, artifacts)


def write_exports(flags: dict[str, str]) -> dict:
    """Parameters into their files; pages and the curve as artifacts."""
    for name in {*BOOLEANS, *NUMBERS} & flags.keys():
        Path(flags[name]).write_text("true" if name in BOOLEANS else "7")
    artifacts = {}
    for name in {*PAGES, "classification"} & flags.keys():
        Path(flags[name]).write_text("<p>")
        artifacts[name] = entry(flags[name], CURVE if name == "classification" else {})
    return artifacts


def entry(uri: str, metadata: dict) -> dict:
    return {"artifacts": [{"uri": uri, "metadata": metadata}]}


def break_before(fault: str) -> None:
    if fault == "exit code":
        print("ava: train.learning_rate is too large", file=sys.stderr)
        sys.exit(3)
    if fault == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "silent success":
        sys.exit(0)
    if fault == "hang":
        start_child()
        print("hanging", file=sys.stderr)
        time.sleep(600)
    if fault == "hang deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("hanging", file=sys.stderr)
        time.sleep(600)


def start_child() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(os.environ["FAKE_JOURNAL"]).with_name("child.pid").write_text(str(child.pid))


def break_after(fault: str, flags: dict[str, str], output: Path, artifacts: dict) -> None:
    executor_output = Path(flags["executor-output"])
    if fault == "no executor output":
        executor_output.unlink()
    elif fault == "torn executor output":
        executor_output.write_text(executor_output.read_text()[:40])
    elif fault == "executor output of another kind":
        executor_output.write_text('{"artifacts": [1, 2]}')
    elif fault == "no output":
        output.rename(output.with_name("elsewhere"))
    elif fault == "no address":
        artifacts[output.name]["artifacts"][0]["uri"] = ""
        executor_output.write_text(json.dumps({"artifacts": artifacts}))
    elif fault == "unlisted output":
        del artifacts[output.name]
        executor_output.write_text(json.dumps({"artifacts": artifacts}))
    elif fault == "output that nobody asked for":
        artifacts["other"] = entry(str(output), {})
        executor_output.write_text(json.dumps({"artifacts": artifacts}))
    elif fault == "no metrics":
        artifacts["metrics"] = entry("", {})
        executor_output.write_text(json.dumps({"artifacts": artifacts}))
    elif fault == "metric is NaN":
        artifacts["metrics"] = entry("", {"loss": float("nan")})
        executor_output.write_text(json.dumps({"artifacts": artifacts}))
    elif fault == "metric is text":
        artifacts["metrics"] = entry("", {"loss": "low"})
        executor_output.write_text(json.dumps({"artifacts": artifacts}))
    elif fault == "torn metrics.json":
        (output / "metrics.json").write_text('{"a_fig')
    elif fault == "no report":
        Path(flags["report"]).unlink()
    elif fault == "no parameter":
        Path(flags["promoted"]).unlink()
    elif fault == "broken parameter":
        Path(flags["promoted"]).write_text("perhaps")
    elif fault == "parameter of another type":
        Path(flags["model-version"]).write_text('"seven"')
    elif fault == "curve is NaN":
        artifacts["classification"]["artifacts"][0]["metadata"]["confidenceMetrics"][0]["recall"] = float("nan")
        executor_output.write_text(json.dumps({"artifacts": artifacts}))
    elif fault == "orphan":
        start_child()
    elif fault not in ("", "reuse"):
        sys.exit(f"fake ava: unknown fault {fault}")


if __name__ == "__main__":
    main()
