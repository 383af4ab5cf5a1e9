"""Stands in for the `ava` command: does what the step table promises with a file or two, or breaks it as told.

FAKE_FAULT is `STEP=FAULT`; FAKE_JOURNAL a file that gets a line for each call.
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
}
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
    flags = {words[i][2:]: words[i + 1] for i in range(0, len(words), 2)}
    with Path(os.environ["FAKE_JOURNAL"]).open("a") as journal:
        record = {"step": step, "flags": flags, "pid": os.getpid(), "group": os.getpgid(0)}
        record["environment"] = {name: os.environ.get(name) for name in ("AVA_TRACKING_URI", "AVA_GIT_COMMIT", "MARK")}
        journal.write(json.dumps(record) + "\n")
    print(f"{step} at work", flush=True)
    failing, _, fault = os.environ.get("FAKE_FAULT", "").partition("=")
    fault = fault if failing == step else ""
    break_before(fault)
    output = Path(flags["output"])
    output.mkdir(parents=True)
    metrics = FIGURES.get(step, {"a_figure": 1.5, "another": 2})
    (output / "metrics.json").write_text(json.dumps(metrics))
    if step == "evaluate":
        (output / "evaluation.json").write_text(json.dumps({"samples": SAMPLES}))
        (output / "report.html").write_text("<p>")
    if step == "register":
        (output / "registration.json").write_text(json.dumps(registration(os.environ.get("FAKE_VALUE", "2.0"))))
    artifacts = {output.name: entry(str(output), {"reused": fault == "reuse"})}
    if step != "record-outcome":
        artifacts["metrics"] = entry("", metrics)
    if "report" in flags:
        Path(flags["report"]).write_text("<p>")
        artifacts["report"] = entry(flags["report"], {})
    if "promoted" in flags:
        Path(flags["promoted"]).write_text("true")
        Path(flags["model-version"]).write_text("7")
    Path(flags["executor-output"]).write_text(json.dumps({"artifacts": artifacts}))
    break_after(fault, flags, output, artifacts)


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
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(os.environ["FAKE_JOURNAL"]).with_name("child.pid").write_text(str(child.pid))
        print("hanging", flush=True)
        time.sleep(600)


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
    elif fault == "orphan":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(os.environ["FAKE_JOURNAL"]).with_name("child.pid").write_text(str(child.pid))
    elif fault not in ("", "reuse"):
        sys.exit(f"fake ava: unknown fault {fault}")


if __name__ == "__main__":
    main()
