"""TLS at both doors, with certificates of clients where they are asked for."""

from __future__ import annotations

import ssl
import threading
import time
from pathlib import Path

import grpc
import httpx
import pytest
import uvicorn

from albireo.observations.errors import BadInput
from albireo.service.app import create_app
from albireo.service.settings import Settings
from albireo.service.tls import Tls
from tests.service.certificates import make_certificates
from tests.service.grpc_doors import served


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, and certificates of 127.0.0.1 and of a client that it has signed."""
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


def test_tls_with_certificates_of_clients(core, settings: Settings, certificates: Path) -> None:
    secured = settings.model_copy(
        update={
            "tls_certificate": certificates / "server.pem",
            "tls_key": certificates / "server.key",
            "tls_client_ca": certificates / "ca.pem",
        }
    )
    tls = Tls.of(secured)
    assert tls is not None
    config = uvicorn.Config(create_app(core, secured), port=0, log_config=None, lifespan="off", **tls.uvicorn())
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    ends = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < ends
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    trusting = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    with pytest.raises(httpx.TransportError):
        httpx.get(f"https://127.0.0.1:{port}/livez", verify=trusting)
    trusting.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    assert httpx.get(f"https://127.0.0.1:{port}/livez", verify=trusting).json() == {"status": "alive"}
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def test_grpc_with_certificates_of_clients(core, settings: Settings, certificates: Path) -> None:
    files = {name: (certificates / name).read_bytes() for name in ("ca.pem", "client.pem", "client.key")}
    pair = (certificates / "server.pem", certificates / "server.key")

    def alive(credentials: grpc.ChannelCredentials) -> bool:
        with grpc.secure_channel(f"127.0.0.1:{door.door.port}", credentials) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=1.5)
            except grpc.FutureTimeoutError:
                return False
            return True

    with served(core, settings, certificate=pair, client_ca=certificates / "ca.pem") as door:
        assert alive(grpc.ssl_channel_credentials(files["ca.pem"], files["client.key"], files["client.pem"]))
        assert not alive(grpc.ssl_channel_credentials(files["ca.pem"]))


@pytest.mark.parametrize(
    ("stated", "field"),
    [
        ({"tls_certificate": "server.pem"}, "ALBIREO_TLS_KEY"),
        ({"tls_key": "server.key"}, "ALBIREO_TLS_CERTIFICATE"),
        ({"tls_client_ca": "ca.pem"}, "ALBIREO_TLS_CERTIFICATE"),
        ({"tls_certificate": "server.pem", "tls_key": "none.key"}, "ALBIREO_TLS_KEY"),
        ({"tls_certificate": "server.pem", "tls_key": "client.key"}, "ALBIREO_TLS_CERTIFICATE"),
        (
            {"tls_certificate": "server.pem", "tls_key": "server.key", "tls_client_ca": "server.key"},
            "ALBIREO_TLS_CLIENT_CA",
        ),
    ],
)
def test_tls_files_that_do_not_fit(certificates: Path, stated: dict[str, str], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        Tls.of(Settings(**{name: certificates / file for name, file in stated.items()}))
    assert (caught.value.code, caught.value.field) == ("option_invalid", field)


def test_no_tls_by_default() -> None:
    assert Tls.of(Settings()) is None
