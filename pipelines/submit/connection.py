"""A KFP client with time limits, with retries of requests that change nothing, and with a token that may be rotated."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import urllib3
from kfp import Client
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials
from kfp_server_api.exceptions import ApiException
from kfp_server_api.rest import RESTClientObject

from ava_core.errors import AvaError

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 90.0
"""Read timeout; far above what an answer takes, for KFP waits up to 30 seconds for MLflow while it makes a run."""
RETRIES = urllib3.Retry(
    total=4,
    connect=2,
    other=0,  # a certificate that isn't trusted won't be the next time
    redirect=False,  # the API redirects nowhere: it would be to a login page
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=("GET",),  # what changes something is asked again by `exactly_once`, or not at all
    backoff_factor=0.5,
    backoff_max=10,
    retry_after_max=60,
    raise_on_status=False,
)
"""Exponential backoff, some seven seconds in all; a connection that was never made is tried again for any method."""


def connect(
    host: str,
    *,
    token: str | None = None,
    token_file: Path | None = None,
    ca_file: Path | None = None,
    namespace: str | None = None,
) -> Client:
    """A client of a server that was seen to answer.

    Args:
        host: http:// or https:// address.
        token: bearer token.
        token_file: file with a bearer token, read anew for every request: a mounted token is rotated while we wait.
        ca_file: certificates, as PEM, of the authorities that may have signed the server's.
        namespace: Kubernetes namespace of a multi-user server.

    Raises:
        AvaError: it is no KFP server, or one that needs a namespace.
        ApiException, urllib3.exceptions.HTTPError: see `errors.explained`.
    """
    # Its warnings of each new attempt are several lines long, and what comes of them is said in one at the end.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    credentials = ServiceAccountTokenVolumeCredentials(str(token_file)) if token_file else None
    try:
        with quiet():
            client = _PatientClient(
                host=host,
                existing_token=token,
                credentials=credentials,
                ssl_ca_cert=str(ca_file) if ca_file else None,
                namespace=namespace or "kubeflow",
            )
            health = client.get_kfp_healthz()
    except ApiException as error:
        if error.status == 404:
            raise AvaError(f"{host}: has no Kubeflow Pipelines API (404): check --host and its path") from error
        raise
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the generated client has set it back
    if health.multi_user and not client.get_user_namespace():
        raise AvaError(f"{host}: serves several users: give yours with --namespace")
    return client


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what the client prints about each thing it makes, and its warning about old servers."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _PatientClient(Client):
    """kfp.Client with deadlines and retries, neither of which it lets its users set."""

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        """Ask for the health once; the stock method asks five times, with a traceback each time.

        The constructor calls this before anything else is sent, so it is where the connection is made ours.
        """
        api_client = self._healthz_api.api_client
        if not isinstance(api_client.rest_client, _RestClient):
            api_client.configuration.retries = RETRIES
            api_client.rest_client = _RestClient(api_client.configuration)
        return self._healthz_api.healthz_service_get_healthz()


class _RestClient(RESTClientObject):
    """The generated client's connection, with a deadline for each answer, which must be JSON."""

    def request(self, method: str, url: str, **options: Any) -> Any:
        options["_request_timeout"] = options.get("_request_timeout") or (CONNECT_SECONDS, ANSWER_SECONDS)
        answer = super().request(method, url, **options)
        # A proxy's login page comes with 200, and the generated code would read it as an object without any value.
        if "json" not in (answer.getheader("Content-Type") or ""):
            raise ApiException(http_resp=answer)
        return answer
