"""`ava serve` under load: rate, times to the first token and between tokens, memory over many requests.

Usage: python -m benchmarks.load --guidellm COMMAND [--model FOLDER] [--streams 1 4 16] [--requests 10000]

COMMAND is GuideLLM's, the load generator of the vLLM project: `pip install guidellm==0.8.1` in an environment of its
own. Without --model it is cpu/small with random weights in 4 bits, and a vocabulary of the corpus that `make data`
fetches. First prompts of 64 tokens with 64 new ones at each concurrency; then short requests in great number, while the
memory of the server is read twice a second. A request that failed or was lost ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from ava_core.config.hardware import usable_cores
from benchmarks import hardware, report
from benchmarks.inference import finish, make_models
from benchmarks.served import NAME, serving

PROMPT, NEW = 64, 64
SHORT_PROMPT, SHORT_NEW, SHORT_STREAMS = 16, 4, 16
REQUESTS_PER_STREAM = 15
WARM_UP = 0.1
"""Share of the many requests after which memory should grow no more."""
SAMPLE_SECONDS = 0.5
QUIET = {"HF_HUB_OFFLINE": "1", "GUIDELLM__LOGGING__CONSOLE_LOG_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error"}


def generate_load(
    guidellm: str, address: str, tokenizer: Path, *, streams: int, requests: int, prompt: int, new: int
) -> dict[str, float]:
    """Figures of so many requests, `streams` at a time."""
    with tempfile.TemporaryDirectory(prefix="ava-load-") as name:
        result = Path(name, "result.json")
        command = [guidellm, "run", "--disable-console"]
        command += ["--backend", f"kind=openai_http,target={address},model={NAME},request_format=/v1/completions"]
        command[-1] += ",validate_backend=false"  # it would ask for vLLM's /health
        command += ["--profile", f"kind=concurrent,streams={streams}"]
        command += ["--constraint", f"kind=max_requests,count={requests}"]
        command += ["--data", f"kind=synthetic_text,prompt_tokens={prompt},output_tokens={new}"]
        command += ["--tokenizer", f"kind=hf_auto,model={tokenizer}", "--output", f"kind=json,path={result}"]
        subprocess.run(command, check=True, env=os.environ | QUIET, stdout=subprocess.DEVNULL)
        return figures(json.loads(result.read_text())["benchmarks"][0]["metrics"], requests)


def figures(metrics: dict[str, Any], requests: int) -> dict[str, float]:
    """What is printed of GuideLLM's report; times in milliseconds."""
    totals = metrics["request_totals"]

    def percentile(name: str, which: str) -> float:
        return float(metrics[name]["successful"]["percentiles"][which])

    return {
        "requests": totals["successful"],
        "lost": requests - totals["successful"],
        "requests_per_second": metrics["requests_per_second"]["successful"]["mean"],
        "tokens_per_second": metrics["output_tokens_per_second"]["successful"]["mean"],
        "first_token_p50": percentile("time_to_first_token_ms", "p50"),
        "first_token_p99": percentile("time_to_first_token_ms", "p99"),
        "between_tokens_p50": percentile("inter_token_latency_ms", "p50"),
        "between_tokens_p99": percentile("inter_token_latency_ms", "p99"),
    }


class Memory:
    """Samples a process's resident memory in the background, MiB."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self.samples: list[float] = []
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self.samples.append(self._process.memory_info().rss / 2**20)

    def growth(self) -> dict[str, float]:
        """After the warm-up, at the end, and the largest, MiB."""
        return {
            "after_warm_up": self.samples[int(len(self.samples) * WARM_UP)],
            "end": self.samples[-1],
            "largest": max(self.samples),
        }


def make_model(folder: Path) -> Path:
    """cpu/small's shapes in 4 bits, whose every token is a text: without one a client can't see it arrive."""
    model = make_models(folder)["int4"]
    texts = [path.read_text(errors="replace") for path in sorted(Path("data/raw").rglob("*.md"))]
    if not texts:
        raise SystemExit("data/raw: no texts for a vocabulary: run `make data`, or give --model")
    finish(model, texts, vocab_size=8192)
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").split("\n")[0])
    flags.add_argument("--guidellm", required=True, help="GuideLLM's command")
    flags.add_argument("--model", type=Path, help="output of `ava quantize`")
    flags.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    flags.add_argument("--requests", type=int, default=10_000)
    flags.add_argument("--results", type=Path, default=report.RESULTS, help="folder to keep figures in")
    known = flags.parse_args(arguments)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="ava-bench-") as name:
        model = known.model or make_model(Path(name))
        with serving(model) as (address, pid):
            for streams in known.streams:
                count = REQUESTS_PER_STREAM * streams
                load = {"streams": streams, "requests": count, "prompt": PROMPT, "new": NEW}
                rows[f"{streams} at once"] = generate_load(known.guidellm, address, model, **load)
            with Memory(pid) as memory:
                short = {"streams": SHORT_STREAMS, "prompt": SHORT_PROMPT, "new": SHORT_NEW}
                many = generate_load(known.guidellm, address, model, requests=known.requests, **short)
    rows[f"{known.requests} short ones"] = many
    print(report.table(("requests", "/s", "tokens/s", "first token ms", "between ms", "lost"), [
        [
            title,
            f"{row['requests_per_second']:.1f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['first_token_p50']:.1f}, p99 {row['first_token_p99']:.1f}",
            f"{row['between_tokens_p50']:.1f}, p99 {row['between_tokens_p99']:.1f}",
            f"{row['lost']:.0f}",
        ]
        for title, row in rows.items()
    ]))  # fmt: skip
    growth = memory.growth()
    print("\nmemory, MiB: " + ", ".join(f"{title.replace('_', ' ')} {value:.0f}" for title, value in growth.items()))
    described = hardware.describe("cpu", usable_cores())
    kept = {"load": rows, "memory_mib": growth}
    report.keep(hardware.slug(described), "load", described, kept, known.results)
    return 1 if any(row["lost"] for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
