"""`ava serve` on a registry whose champion moves while clients ask."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from ava_core.registry import resolver
from ava_core.registry.resolver import make_resolver
from tests.registry.conftest import Inputs, call_register, write_evaluation
from tests.registry.proxy import Proxy

CLIENTS = 4


@pytest.fixture
def promote(tmp_path, tiny_model, int8_model, mlflow_server, request):
    """Register the model under a new evaluation, which makes a champion of it; gives the address."""
    name, made = f"follow-{request.node.name[:40]}", 0

    def register() -> str:
        nonlocal made
        made += 1
        score = 2.0 - made / 100
        figures = {"test_bits_per_byte": score, "int8_test_bits_per_byte": score + 0.001, f"key_{name}": float(made)}
        evaluation = write_evaluation(tmp_path / f"evaluation{made}", tiny_model, [int8_model], figures)
        inputs = Inputs(tiny_model, evaluation, [int8_model])
        call_register(inputs, tmp_path / f"registration{made}", mlflow_server, name, {})
        return f"models:/{name}@champion"

    return register


@pytest.mark.slow
def test_no_request_fails_while_the_champion_moves(promote, mlflow_server, tmp_path):
    address = promote()
    with _serving(address, mlflow_server, tmp_path) as (_, url):
        texts, failures, moved = _ask_until(f"{url}/v1", promote)
    assert not failures
    assert moved, (tmp_path / "stderr").read_text()
    assert len(texts) > 2 * CLIENTS
    assert len(set(texts)) == 1, "the weights are the same, so the words are"
    assert "2 took over from 1" in (tmp_path / "stderr").read_text()


@pytest.mark.slow
def test_the_server_starts_without_its_registry_and_follows_once_that_is_back(promote, mlflow_server, tmp_path):
    address, away = promote(), []
    with Proxy(mlflow_server, before=lambda method, path: 503 if away else None) as registry:
        assert make_resolver(address, "auto", registry.address, tmp_path / ".ava" / "models")().version == "1"
        away.append(True)
        with _serving(address, registry.address, tmp_path) as (server, url):
            with openai.OpenAI(base_url=f"{url}/v1", api_key="k") as client:
                assert client.models.list().data[0].version == "1"
                assert client.completions.create(model="m", prompt="To be", max_tokens=3).choices[0].text
                time.sleep(1)
                log = (tmp_path / "stderr").read_text()
                assert log.count("WARNING") == 1 and "the registry is away, so it is version 1" in log
                away.clear()
                promote()
                assert _wait_for_version(client, "2")
            assert server.poll() is None


@contextmanager
def _serving(address: str, registry: str, folder: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """`ava serve` in `folder`, and its address."""
    command = [sys.executable, "-m", "ava_core.cli.main", "serve", "--model", address, "--name", "m", "--port", "0"]
    command += ["--poll-seconds", "0.2", "--threads", "1"]
    environment = {"MLFLOW_TRACKING_URI": registry, "PYTHONPATH": str(Path.cwd())}
    with (
        (folder / "stderr").open("w") as errors,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as server,
    ):
        try:
            found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
            assert found, (folder / "stderr").read_text()
            yield server, found[0]
        finally:
            server.terminate()
            assert server.wait(60) == 0


def _wait_for_version(client: openai.OpenAI, version: str) -> bool:
    deadline = time.monotonic() + 250
    while not (moved := client.models.list().data[0].version == version) and time.monotonic() < deadline:
        time.sleep(0.2)
    return moved


def _ask_until(url: str, promote) -> tuple[list[str], list[Exception], bool]:
    """What clients got that asked without a pause, before, while and after the alias moved."""
    done, texts, failures = threading.Event(), [], []

    def ask() -> None:
        with openai.OpenAI(base_url=url, api_key="k", max_retries=0, timeout=200) as client:
            while not done.is_set():
                try:
                    stream = client.completions.create(
                        model="m",
                        prompt="To be",
                        max_tokens=40,
                        temperature=0,
                        stream=True,
                        extra_body={"ignore_eos": True},
                    )
                    texts.append("".join(chunk.choices[0].text for chunk in stream))
                except Exception as error:
                    failures.append(error)
                    return

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    promote()
    with openai.OpenAI(base_url=url, api_key="k") as client:
        moved = _wait_for_version(client, "2")
    time.sleep(1)
    done.set()
    for client in clients:
        client.join(60)
    return texts, failures, moved


@pytest.mark.slow
def test_a_version_is_fetched_and_verified_once(promote, mlflow_server, tmp_path, monkeypatch):
    fetched = []
    real = resolver.download_model

    def counted(*arguments):
        fetched.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(resolver, "download_model", counted)
    resolve = make_resolver(promote(), "int8", mlflow_server, tmp_path / "cache")
    first, again = resolve(), resolve()
    assert first == again and first.version == "1" and (first.folder / "model.onnx").is_file()
    assert len(fetched) == 1
    assert abs(first.created - time.time()) < 3600
    promote()
    assert resolve().version == resolve().version == "2"
    assert len(fetched) == 2
