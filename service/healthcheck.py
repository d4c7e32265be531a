"""The health check of the images: `python -m albireo.service.healthcheck` ends with 0 if the service here is ready.

It runs twice a minute, so it imports nothing but Python, and reads the few settings that it needs by itself.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

SECONDS = 8.0
"""How long it waits for an answer; the images end it after 10."""

HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What a service listens on for every address of the machine -> one of them."""


def check(settings: Mapping[str, str]) -> str:
    """What is well with the service of these environment variables. OSError or HTTPException if it is not ready.

    Where certificates of clients are asked for, the service's own is shown. If that is refused, TLS at least answers.
    """
    host = settings.get("ALBIREO_HOST", "127.0.0.1")
    port = int(settings.get("ALBIREO_PORT", "8000"))
    door = _door(HERE.get(host, host), port, settings)
    try:
        door.connect()
        try:
            door.request("GET", "/readyz")
            status = door.getresponse().status
        except TimeoutError:
            raise
        except (OSError, HTTPException):
            if "ALBIREO_TLS_CLIENT_CA" not in settings:
                raise
            return "alive; whether it is ready is told only to those whose certificate it knows"
    finally:
        door.close()
    if status != 200:
        raise HTTPException(f"/readyz says {status}")
    return "ready"


def _door(host: str, port: int, settings: Mapping[str, str]) -> HTTPConnection:
    """The way to the service: TLS where it has a certificate."""
    certificate = settings.get("ALBIREO_TLS_CERTIFICATE")
    if certificate is None:
        return HTTPConnection(host, port, timeout=SECONDS)
    # The address is our own, and the certificate names others: there is nothing to prove.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if "ALBIREO_TLS_CLIENT_CA" in settings:
        key = settings["ALBIREO_TLS_KEY"]
        context.load_cert_chain(Path(certificate).expanduser(), Path(key).expanduser())
    return HTTPSConnection(host, port, timeout=SECONDS, context=context)


def main() -> int:
    """0 if all is well, else 1."""
    try:
        print(check({name.upper(): value for name, value in os.environ.items()}))
    except (OSError, HTTPException) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
