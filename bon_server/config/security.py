"""What may be open to whom: this machine may call freely, anybody else needs TLS and a key."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from bon_server.core.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SecurityConfig:
    """TLS and keys. The server reads all of these files again when they change."""

    tls_cert: str | None = None
    """Use TLS with the certificate in this PEM file, followed by the intermediate certificates up to its authority.
    Default: plain text."""
    tls_key: str | None = None
    """Take the certificate's private key from this PEM file, which is not encrypted. Default: none."""
    tls_client_ca: str | None = None
    """Let in callers with a certificate of an authority in this PEM file only (mutual TLS). Default: ask for none."""
    api_keys: str | None = None
    """Let in callers with an API key of this TOML file only, see `bon keys new`. Default: whoever reaches the port."""
    allow_insecure: bool = False
    """Listen beyond loopback without TLS or without keys, because a proxy in front provides them. The server warns at
    the start."""


def check_exposure(addresses: Mapping[str, str], security: SecurityConfig) -> None:
    """Lets an address beyond loopback be open only with TLS and keys, or with a warning if that is what was asked for.

    addresses: of each listener, by the setting that names it. Raises `ConfigError`.
    """
    exposed = " and ".join(f"{name} = {host!r}" for name, host in addresses.items() if not is_loopback(host))
    missing = list(_missing(security))
    if not exposed or not missing:
        return
    if not security.allow_insecure:
        raise ConfigError(
            f"{exposed} can be reached from other machines, which needs {' and '.join(missing)}; "
            "where a proxy does their work, --allow-insecure"
        )
    logger.warning("%s can be reached from other machines without %s", exposed, " and ".join(missing))


def _missing(security: SecurityConfig) -> list[str]:
    wanted = {"TLS (--tls-cert, --tls-key)": security.tls_cert, "API keys (--api-keys)": security.api_keys}
    return [name for name, value in wanted.items() if value is None]


def is_loopback(host: str) -> bool:
    """Whether an address of ours is reachable from this machine alone. Names other than `localhost` count as not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
