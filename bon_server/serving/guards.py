"""What the listeners ask of callers, read before any model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from bon_server.config import Config
from bon_server.security import check_exposure
from bon_server.serving.keys import Keys, watch_keys
from bon_server.serving.tls import Certificates, watch_certificates
from bon_server.serving.watched import Watched


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
