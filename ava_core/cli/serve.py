"""`ava serve`: an OpenAI-compatible server of a model."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ava_core.cli.chosen_model import CACHE, DEFAULT_MODEL
from ava_core.cli.looking_up import EmbeddingModel
from ava_core.config.register import REGISTERED
from ava_core.steps.schemes import SMALLEST_FIRST

KEYS = "AVA_API_KEYS"
_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9._-]+")
_ORIGIN = re.compile(r"\*|[A-Za-z][A-Za-z0-9+.-]*://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]+)?")


def serve(
    model: Annotated[
        str,
        typer.Option(
            help="Output folder of `ava quantize`, model folder, or models:/NAME@ALIAS, models:/NAME/VERSION."
        ),
    ] = DEFAULT_MODEL,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="Adapter of a model folder, served beside it: clients send NAME as the model. Repeatable.",
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help=f"Scheme of a registered model's weights: {', '.join(SMALLEST_FIRST)}, or auto: the smallest that it"
            " has."
        ),
    ] = "auto",
    name: Annotated[
        str | None,
        typer.Option(help="Model name that clients send; default: the registered model's or the folder's name."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port to listen on; 0: a free one.")] = 8000,
    slots: Annotated[
        int,
        typer.Option(min=1, max=4096, help="Sequences decoded in one batch, at most; each has a row of the KV cache."),
    ] = 16,
    max_queue: Annotated[
        int, typer.Option(min=0, help="Requests that may wait for a slot; further ones get status 429.")
    ] = 64,
    max_body_bytes: Annotated[
        int, typer.Option(min=1, help="Largest request body in bytes; longer ones get status 413.")
    ] = 2**20,
    request_seconds: Annotated[
        float,
        typer.Option(
            min=0.1, help="Time limit of a request in seconds, from its body to the end of its answer; then status 504."
        ),
    ] = 600.0,
    drain_seconds: Annotated[
        float, typer.Option(min=0.0, help="Seconds that running requests have to finish after SIGTERM.")
    ] = 30.0,
    poll_seconds: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds between two queries of the registry for the version that the alias means."),
    ] = 10.0,
    api_key_file: Annotated[
        Path | None, typer.Option(help=f"File with an API key per line; {KEYS} holds them separated by commas.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that clients reach the server by, beside localhost, --host and, beyond loopback, any address;"
            " *.NAME: all below it; *: any. Repeatable."
        ),
    ] = None,
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin of web pages that may ask (CORS), like https://chat.example; *: all. Repeatable."),
    ] = None,
    access_log: Annotated[bool, typer.Option(help="Log a line per request, without prompt and answer.")] = True,
    chat_template: Annotated[
        Path | None, typer.Option(help="File with a Jinja chat template that replaces the tokenizer's.")
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(help="Output of `ava index`: requests may look passages up in it; /v1/search, /v1/embeddings."),
    ] = None,
    embedding_model: EmbeddingModel = None,
    key_labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='JSON with the access labels of API keys: {"SHA-256 of a key, hexadecimal": ["label", ...]}.',
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, max=1024, help="CPU threads of the decoder; 0: all cores that this process may use.")
    ] = 0,
) -> None:
    """Serve a model over OpenAI's HTTP interface until SIGTERM or Ctrl-C."""
    started = time.perf_counter()
    from ava_core.cli.served_index import open_served_index
    from ava_core.config.hardware import usable_cores
    from ava_core.errors import ConfigError
    from ava_core.runtime import logs

    logs.configure()
    if weights not in (known := ("auto", *SMALLEST_FIRST)):
        raise ConfigError(f"--weights {weights}: must be one of {', '.join(known)}")
    hosts, origins = allowed_host or [], allowed_origin or []
    faults = [f"--allowed-host {name}: must be a name without port" for name in hosts if not _HOST.fullmatch(name)]
    faults += [
        f"--allowed-origin {origin}: must be SCHEME://HOST[:PORT], or *"
        for origin in origins
        if not _ORIGIN.fullmatch(origin)
    ]
    if faults:
        raise ConfigError(*faults)
    keys = _read_keys(api_key_file)
    template = _read(chat_template, "--chat-template") if chat_template else None
    cores = threads or usable_cores()
    retriever, labels = open_served_index(index, embedding_model, key_labels, keys, cores)

    from ava_core.serving.http.app import Access
    from ava_core.serving.http.limits import Limits
    from ava_core.serving.http.server import run

    registered = model.startswith(REGISTERED)
    called = name or _name(model)
    run(
        resolve=_source(model, weights),
        name=called,
        adapters=_adapters(adapter or [], model, called),
        host=host,
        port=port,
        access=Access(keys=keys, hosts=hosts, origins=[origin.lower() for origin in origins], labels=labels),
        retriever=retriever,
        chat_template=template,
        log_requests=access_log,
        limits=Limits(body_bytes=max_body_bytes, request_seconds=request_seconds),
        threads=cores,
        drain_seconds=drain_seconds,
        poll_seconds=poll_seconds if registered else 0.0,
        slots=slots,
        max_queue=max_queue,
        started=started,
    )


def _source(model: str, weights: str) -> Any:
    """Returns the model to serve when it is called: a folder, or the version that the registry's address means."""
    if not model.startswith(REGISTERED):
        from ava_core.serving.models import folder_source

        return folder_source(Path(model))
    from ava_core.registry.resolver import make_resolver
    from ava_core.tracking import tracking_uri

    return make_resolver(model, weights, tracking_uri(), CACHE)


def _adapters(given: list[str], model: str, name: str) -> dict[str, Path]:
    """The adapters' folders by name."""
    from ava_core.errors import ConfigError

    found: dict[str, Path] = {}
    for item in given:
        called, separator, folder = item.partition("=")
        if not (called and separator and folder):
            raise ConfigError(f"--adapter {item}: must be NAME=FOLDER")
        if called == name or called in found:
            raise ConfigError(f"--adapter {item}: something is served as {called} already: give it another name")
        if model.startswith(REGISTERED):
            raise ConfigError(
                f"--adapter {item}: a registered model is served with rounded weights, which have no place for an"
                " update: serve its model folder, or merge both, quantise that and serve it by its own name"
            )
        found[called] = Path(folder)
    if found:
        from ava_core.serving.float_models import require_float

        for path in found.values():
            require_float(Path(model), path)
    return found


def _name(model: str) -> str:
    """The registered name, or the folder's."""
    if model.startswith(REGISTERED):
        return model.removeprefix(REGISTERED).split("@")[0].split("/")[0]
    return Path(model).resolve().name


def _read_keys(path: Path | None) -> list[str]:
    text = _read(path, "--api-key-file") if path else os.environ.get(KEYS, "").replace(",", "\n")
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if path and not keys:
        from ava_core.errors import ConfigError

        raise ConfigError(f"--api-key-file {path}: holds no key: write one per line")
    return keys


def _read(path: Path, flag: str) -> str:
    from ava_core.errors import ConfigError

    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag} {path}: can't be read ({error})") from error
