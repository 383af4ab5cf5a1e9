import shutil
import threading
from dataclasses import replace

import pytest

from ava_core.errors import AvaError, IntegrityError
from ava_core.runtime import manifest
from ava_core.serving.models import GENERATION_CONFIG, ServedModels, Source, folder_source
from ava_core.serving.requests import Draining

WAIT = 30.0


class Registry:
    """A source whose version and folder a test moves."""

    def __init__(self, folder) -> None:
        self.version, self.folder = "1", folder
        self.looks = 0

    def look(self) -> Source:
        self.looks += 1
        return Source(self.version, self.folder, 0)


@pytest.fixture
def registry(served_model):
    return Registry(served_model)


@pytest.fixture
def make_models(collector):
    made = []

    def make(look, **settings) -> ServedModels:
        made.append(ServedModels("tiny", look, collector.deliver, threads=1, **settings))
        return made[-1]

    yield make
    for models in made:
        models.close(0.0)


def test_a_folder_s_model_was_made_when_its_manifest_was_written(make_models, served_model):
    models = make_models(folder_source(served_model))
    assert models.current().created == int((served_model / "manifest.json").stat().st_mtime) > 0


def test_ends_of_answers_are_those_that_the_folder_lists(make_models, served_model, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(served_model, copied)

    def listing(text: str) -> ServedModels:
        (copied / GENERATION_CONFIG).write_text(text)
        manifest.write(copied, replace(manifest.read(copied), files=manifest.describe_files(copied)))
        return make_models(folder_source(copied))

    assert listing('{"eos_token_id": [0, 7, 9]}').current().ends == (0, 7, 9)
    assert listing('{"eos_token_id": 7}').current().ends == (7,)
    assert listing("{}").current().ends == ()
    with pytest.raises(IntegrityError, match=r"generation_config.json: can't be read .*make the folder again"):
        listing("{broken")


def hold(engine) -> threading.Event:
    """Keep an engine from its next step until the event is set."""
    real, go_on = engine.decoder.run, threading.Event()

    def held(*arguments, **options):
        assert go_on.wait(WAIT)
        return real(*arguments, **options)

    engine.decoder.run = held
    return go_on


def test_no_request_fails_while_the_model_is_exchanged(make_models, registry, collector, ask):
    models = make_models(registry.look, slots=4, max_queue=10_000)
    first, sent, enough = models.current().engine, [], threading.Event()
    sent += [first.submit(ask(index, max_new_tokens=100)) for index in range(6)]

    def keep_sending() -> None:
        while not enough.wait(0.002):
            request = ask(len(sent) % 5, max_new_tokens=5)
            try:
                sent.append(models.current().engine.submit(request))
            except Draining:  # as the HTTP server does
                sent.append(models.current().engine.submit(request))

    sender = threading.Thread(target=keep_sending)
    sender.start()
    try:
        for version in ("2", "3"):
            registry.version = version
            assert models.refresh()
    finally:
        enough.set()
        sender.join(WAIT)
    assert all(getattr(deltas[-1], "finish_reason", None) for deltas in collector.wait(sent))
    assert models.current().version == "3"
    assert models.current().engine.stats().prompt_tokens > 0
    assert not first._thread.is_alive()


def test_exchanged_engine_finishes_its_requests_however_long_they_take(make_models, registry, collector, ask):
    models = make_models(registry.look, drain_seconds=0.0)
    old = models.current().engine
    go_on, running = hold(old), old.submit(ask(max_new_tokens=30))
    registry.version = "2"
    exchange = threading.Thread(target=models.refresh)
    exchange.start()
    while models.current().version == "1":
        exchange.join(0.01)
    [deltas] = collector.wait([models.current().engine.submit(ask(1))])
    assert deltas[-1].finish_reason
    exchange.join(0.1)
    assert exchange.is_alive(), "the old engine was given up while a request was running"
    go_on.set()
    [deltas] = collector.wait([running])
    assert (deltas[-1].finish_reason, deltas[-1].tokens) == ("length", 30)
    exchange.join(WAIT)
    assert not exchange.is_alive()


def test_damaged_version_is_logged_once_and_the_old_one_goes_on(
    make_models, registry, collector, ask, served_model, tmp_path, caplog
):
    models = make_models(registry.look)
    damaged = shutil.copytree(served_model, tmp_path / "damaged")
    weights = bytearray((damaged / "model.onnx.data").read_bytes())
    weights[len(weights) // 2] ^= 1
    (damaged / "model.onnx.data").write_bytes(weights)
    registry.version, registry.folder = "2", damaged
    assert [models.refresh() for _ in range(3)] == [False] * 3
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "1 goes on" in warning
    assert "model.onnx.data" in warning
    assert models.current().version == "1"
    assert collector.wait([models.current().engine.submit(ask())])[0][-1].finish_reason
    registry.version, registry.folder = "3", served_model
    assert models.refresh()


def test_registry_that_does_not_answer_is_logged_once_and_asked_again(make_models, registry, caplog):
    down = threading.Event()

    def look() -> Source:
        if down.is_set():
            raise AvaError("the registry doesn't answer")
        return registry.look()

    models = make_models(look)
    down.set()
    assert [models.refresh() for _ in range(3)] == [False] * 3
    assert sum("doesn't answer" in record.getMessage() for record in caplog.records) == 1
    down.clear()
    registry.version = "2"
    assert models.refresh()


def test_alias_is_polled(make_models, registry):
    models = make_models(registry.look, poll_seconds=0.01)
    registry.version, pause = "2", threading.Event()
    for _ in range(int(WAIT / 0.01)):
        if models.current().version == "2" or pause.wait(0.01):
            break
    assert models.current().version == "2"


def test_version_that_comes_while_the_server_ends_is_closed_again(make_models, registry, served_model):
    ending = []

    def look() -> Source:
        if ending:
            ending[0].close(0.0)
            return Source("2", served_model, 0)
        return registry.look()

    models = make_models(look)
    before = threading.active_count()
    ending.append(models)
    assert not models.refresh()
    assert models.current().version == "1"
    assert threading.active_count() == before - 1


def test_damaged_first_model_is_refused(make_models, served_model, tmp_path):
    damaged = shutil.copytree(served_model, tmp_path / "damaged")
    (damaged / "model.onnx").unlink()
    with pytest.raises(AvaError, match=r"model\.onnx"):
        make_models(lambda: Source("1", damaged, 0))
