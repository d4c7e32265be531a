"""TLS as the settings say it, the same for HTTP and gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from albireo.observations.errors import BadInput
from albireo.service.settings import Settings

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True)
class Tls:
    """PEM files: the certificate with those that signed it, its key, and who must have signed those of clients."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> Tls | None:
        """None if there is no TLS. BadInput option_invalid if only a part of it is set, or a file cannot be used."""
        stated = {
            name: None if (path := getattr(settings, name)) is None else path.expanduser()
            for name in ("tls_certificate", "tls_key", "tls_client_ca")
        }
        if not any(stated.values()):
            return None
        for name in ("tls_certificate", "tls_key"):
            if stated[name] is None:
                raise BadInput(
                    "option_invalid",
                    "TLS needs a certificate and its key",
                    field=f"ALBIREO_{name.upper()}",
                    fix="set ALBIREO_TLS_CERTIFICATE and ALBIREO_TLS_KEY",
                )
        for name, path in stated.items():
            if path is not None and not path.is_file():
                raise BadInput(
                    "option_invalid", "there is no such file", file=str(path), field=f"ALBIREO_{name.upper()}"
                )
        certificate, key, client_ca = stated.values()
        assert certificate is not None
        assert key is not None
        made = cls(certificate, key, client_ca)
        made.context()
        return made

    def context(self) -> ssl.SSLContext:
        """What a server needs to talk TLS. BadInput option_invalid if the files do not fit together."""
        import ssl

        field = "tls_certificate"
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # Without a password nobody is asked for one.
            context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
            if self.client_ca is not None:
                field = "tls_client_ca"
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError) as error:
            raise BadInput(
                "option_invalid",
                f"TLS: {error}",
                file=str(getattr(self, field.removeprefix("tls_"))),
                field=f"ALBIREO_{field.upper()}",
                fix="name a certificate and its key, not encrypted, as PEM",
            ) from error
        return context

    def uvicorn(self) -> dict[str, Any]:
        """What uvicorn is told."""
        import ssl

        options: dict[str, Any] = {"ssl_certfile": str(self.certificate), "ssl_keyfile": str(self.key)}
        if self.client_ca is not None:
            options |= {"ssl_ca_certs": str(self.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        return options
