"""What the listeners ask of callers, certificates and keys, read before any model is loaded.

`Certificates` are the server's own: read, checked, and read again when they change.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from bon_server.config.security import SecurityConfig, check_exposure
from bon_server.config.settings import Config
from bon_server.core.errors import ConfigError
from bon_server.serving.auth.keys import Keys, watch_keys
from bon_server.serving.auth.watched import Watched


@dataclass(frozen=True, eq=False)
class Certificates:
    """What fits together: a certificate with its key, and the authorities of callers."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    """None: callers need no certificate."""
    https: ssl.SSLContext
    """The same, for the metrics endpoint. TLS 1.2 at least, as for gRPC."""


def watch_certificates(security: SecurityConfig) -> Watched[Certificates] | None:
    """None where the server speaks plain text. Makes no gRPC object. Raises `ConfigError`."""
    if security.tls_cert is None and security.tls_key is None and security.tls_client_ca is None:
        return None
    if security.tls_cert is None or security.tls_key is None:
        raise ConfigError("TLS needs both --tls-cert and --tls-key")
    cert, key = Path(security.tls_cert), Path(security.tls_key)
    client_ca = None if security.tls_client_ca is None else Path(security.tls_client_ca)
    paths = [path for path in (cert, key, client_ca) if path is not None]
    return Watched(paths, lambda: _read(cert, key, client_ca))


def _read(cert: Path, key: Path, client_ca: Path | None) -> Certificates:
    """Raises `ConfigError` where one cannot be read or they do not fit."""
    before = _contents(cert), _contents(key), None if client_ca is None else _contents(client_ca)
    https = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    https.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # With no password given, OpenSSL would ask the terminal for it.
        https.load_cert_chain(cert, key, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"security.tls_cert = {str(cert)!r} and security.tls_key = {str(key)!r} are not a PEM certificate with its "
            f"unencrypted private key ({_reason(error)})"
        ) from None
    if client_ca is not None:
        https.verify_mode = ssl.CERT_REQUIRED
        try:
            https.load_verify_locations(client_ca)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"security.tls_client_ca = {str(client_ca)!r} holds no PEM certificate ({_reason(error)})"
            ) from None
    after = _contents(cert), _contents(key), None if client_ca is None else _contents(client_ca)
    if before != after:
        raise ConfigError(f"security.tls_cert = {str(cert)!r}: it or its key changed while they were read")
    return Certificates(*before, https)


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or type(error).__name__


def server_credentials(certificates: Watched[Certificates]) -> grpc.ServerCredentials:
    """TLS for a gRPC port; each new connection gets the certificate that is current then."""
    given = certificates.current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks from threads of its own, before each handshake; None: as before."""
        nonlocal given
        current = certificates.current()
        if current is given:
            return None
        given = current
        return _configuration(current)

    require_client = given.client_ca is not None
    # The stubs do not know that None is an answer.
    return grpc.dynamic_ssl_server_credentials(_configuration(given), changed, require_client)  # type: ignore[arg-type]


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(certificates.key, certificates.chain)], certificates.client_ca)


@dataclass(frozen=True)
class Guards:
    """Both follow their files while the server runs."""

    keys: Watched[Keys] | None
    """None: whoever reaches the port may call."""
    certificates: Watched[Certificates] | None
    """None: plain text."""

    @classmethod
    def of(cls, config: Config) -> Guards:
        """Makes no gRPC object. Raises `ConfigError`."""
        listen = config.listen
        addresses = {"listen.host": listen.host, "listen.metrics_host": listen.metrics_host}
        check_exposure(addresses, config.security)
        return cls(watch_keys(config.security.api_keys), watch_certificates(config.security))
