"""How a client gets in: TLS, its own certificate, an API key. The same for both clients and the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypedDict
from urllib.parse import unquote

import grpc

API_KEY_VARIABLE: Final = "BON_API_KEY"

File = str | os.PathLike[str]
Metadata = tuple[tuple[str, str], ...]


class SecurityError(ValueError):
    """What was given for TLS or as a key cannot be used, or would give the key away."""


class Security(TypedDict, total=False):
    """Options of both clients."""

    api_key: str | None
    """Sent with every call. Unset, and without a file: the environment's BON_API_KEY, if there is one."""
    api_key_file: File | None
    """File that holds the key and nothing else."""
    tls: bool
    """TLS with the usual authorities; what follows implies it."""
    tls_ca: File | None
    """PEM file of the authorities to trust instead."""
    tls_cert: File | None
    """PEM file of the client's own certificate, for servers that ask for one."""
    tls_key: File | None
    """PEM file of its private key."""
    allow_insecure: bool
    """Whether the key may be sent in plain text to another machine, where something else protects the way there."""


def secured(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    security: Security,
    environment: Mapping[str, str] = os.environ,
) -> tuple[grpc.ChannelCredentials | None, Metadata]:
    """What the channel is made with (None: plain text), and what goes with each call. Raises SecurityError, OSError."""
    unknown = security.keys() - Security.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option {min(unknown)!r}; there are {', '.join(Security.__annotations__)}")
    key = _api_key(security, environment)
    chosen = _credentials(security) if credentials is None else credentials
    if key is None:
        return chosen, ()
    if chosen is None and not security.get("allow_insecure") and not is_local(target):
        raise SecurityError(
            f"the API key would go to {target} in plain text; use TLS (tls, tls_ca), or allow_insecure where something "
            "else protects the way there"
        )
    return chosen, (("authorization", f"Bearer {key}"),)


def is_local(target: str) -> bool:
    """Whether a gRPC target is on this machine, as far as its name tells."""
    scheme, separator, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract") and separator:
        return True
    address = rest.rpartition("/")[2] if scheme in ("dns", "ipv4", "ipv6") else target
    host = unquote(address).rpartition(":")[0] or address
    return host in ("localhost", "[::1]") or (host.startswith("127.") and host.replace(".", "").isdecimal())


def _api_key(security: Security, environment: Mapping[str, str]) -> str | None:
    given, file = security.get("api_key"), security.get("api_key_file")
    if given is not None and file is not None:
        raise SecurityError("both api_key and api_key_file are given")
    where = "api_key"
    if file is not None:
        where, given = f"api_key_file {str(file)!r}", _read(file).decode("utf-8", "replace").strip()
    elif given is None:
        where, given = API_KEY_VARIABLE, environment.get(API_KEY_VARIABLE)
    if given is None:
        return None
    if not given or not given.isascii() or not given.isprintable() or " " in given:
        raise SecurityError(f"{where} holds no API key")
    return given


def _credentials(security: Security) -> grpc.ChannelCredentials | None:
    ca, cert, key = (security.get(name) for name in ("tls_ca", "tls_cert", "tls_key"))
    if (cert is None) != (key is None):
        raise SecurityError("tls_cert and tls_key go together")
    if not security.get("tls") and ca is None and cert is None:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(ca, b"CERTIFICATE"),
        private_key=_pem(key, b"PRIVATE KEY"),
        certificate_chain=_pem(cert, b"CERTIFICATE"),
    )


def _pem(file: object, kind: bytes) -> bytes | None:
    if file is None:
        return None
    assert isinstance(file, str | os.PathLike)
    content = _read(file)
    if b"-----BEGIN " not in content or kind + b"-----" not in content:
        raise SecurityError(f"{str(file)!r} holds no PEM {kind.decode().lower()}")
    return content


def _read(file: File) -> bytes:
    return Path(file).read_bytes()
