"""Real servers on loopback that speak the protocols of buckets: Amazon's and Google's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from ports import free_port

BUCKET = "discojax-test"


@contextlib.contextmanager
def s3() -> Iterator[str]:
    """A bucket on a server of Amazon's protocol."""
    server_of = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with _environment(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_DEFAULT_REGION="us-east-1"):
        server.start()
        try:
            _, port = server.get_host_and_port()
            with _environment(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}"):
                boto3.client("s3").create_bucket(Bucket=BUCKET)
                yield f"s3://{BUCKET}"
        finally:
            server.stop()


@contextlib.contextmanager
def gs() -> Iterator[str]:
    """A bucket on a server of Google's protocol, for gcsfs and for TensorStore."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs")
    port = free_port()
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    url = f"http://127.0.0.1:{port}"
    token = {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "GOOGLE_CLOUD_PROJECT": "test"}
    with _environment(STORAGE_EMULATOR_HOST=url, TENSORSTORE_GCS_HTTP_URL=url, **token):
        server.start()
        try:
            yield f"gs://{BUCKET}"
        finally:
            server.stop()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **values}.items():
            patch.setenv(name, value)
        _forget()
        yield
    _forget()


def _forget() -> None:
    """Clients that were made for another server."""
    import fsspec

    for cls in list(fsspec.registry.values()):
        cls.clear_instance_cache()
