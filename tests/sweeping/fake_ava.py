"""Stands in for `ava`: trains a parabola. Its loss falls to (log10(rate) + 2)^2 + 1 in ten measurements.

FAKE is JSON: `journal`, a file that gets a line for each call; `fail`, `hang`, `slow`: numbers of trials.
"""

import json
import math
import os
import sys
import time
from itertools import pairwise
from pathlib import Path

STEPS = 100


def main() -> None:
    step, *words = sys.argv[1:]
    flags, sets = {}, {}
    for word, value in pairwise(words):
        if word == "--set":
            key, _, text = value.partition("=")
            sets[key] = json.loads(text)
        elif word.startswith("--"):
            flags[word[2:]] = value
    output = Path(flags["output"])
    number = int(output.parent.name) if output.parent.name.isdigit() else -1
    told = json.loads(os.environ["FAKE"])
    state = Path(flags["work"]) / step / output.parent.name / "state"
    call = {"step": step, "number": number, "sets": sets, "pid": os.getpid(), "again": state.exists()}
    call["run"] = os.environ.get("MLFLOW_RUN_ID")
    with Path(told["journal"]).open("a") as journal:
        journal.write(json.dumps(call) + "\n")
    if number in told.get("fail", ()):
        print("ava: step 7: gradient norm is nan: lower train.learning_rate", file=sys.stderr)
        sys.exit(1)
    figures = {"documents_kept": 1} if step == "preprocess" else train(state, sets, told, number)
    output.mkdir(parents=True, exist_ok=step == "preprocess")
    if step == "train":
        (output / "history.jsonl").write_text((state / "history.jsonl").read_text())
        state.rename(state.with_name("output"))
    (output / "metrics.json").write_text(json.dumps(figures))
    output.with_name(f"{output.name}.timings.json").write_text('{"wall_seconds": 1.0, "tokens_per_second": 100.0}')


def train(state: Path, sets: dict, told: dict, number: int) -> dict:
    state.mkdir(parents=True, exist_ok=True)
    (state.parent / "lock").touch()
    goal = (math.log10(sets["train.learning_rate"]) + 2) ** 2 + 1
    with (state / "history.jsonl").open("w") as history:
        for step in range(10, STEPS + 1, 10):
            loss = goal + 3 * (1 - step / STEPS)
            row = {"step": step, "validation_loss": 2 * loss, "validation_bits_per_byte": loss}
            history.write(json.dumps(row) + "\n")
            history.flush()
            if number in told.get("hang", ()) and step == 50:
                time.sleep(600)
            if number in told.get("slow", ()) and step > 20:
                time.sleep(30)
    width = sets.get("model.hidden_size", 32)
    return {"validation_loss": 2 * goal, "validation_bits_per_byte": goal, "steps": STEPS, "active_parameters": width}


if __name__ == "__main__":
    main()
