"""The metrics over HTTP: open on loopback, elsewhere over TLS and to keys with the right `admin`."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from bon_server.core.errors import NotAuthenticated, NotPermitted, RequestError
from bon_server.serving.auth import access
from bon_server.serving.auth.access import ANONYMOUS, bearer
from bon_server.serving.auth.guards import Certificates
from bon_server.serving.auth.keys import Keys, Right
from bon_server.serving.auth.watched import Watched
from bon_server.serving.status import CODES
from bon_server.system.supervision import OnDeath, start_thread

STATUS: dict[type[RequestError], str] = {NotAuthenticated: "401 Unauthorized", NotPermitted: "403 Forbidden"}

CALLER_S = 10.0
"""What a caller gets for its handshake and its request."""


class MetricsEndpoint:
    """Serves from a thread of its own until it is closed."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        certificates: Watched[Certificates] | None,
        keys: Watched[Keys] | None,
        on_death: OnDeath,
    ) -> None:
        """Raises OSError when it cannot listen there. None: plain text; to everybody."""
        app: WSGIApplication = make_wsgi_app(registry)
        listener = _Listener if ":" not in host else _ListenerV6
        self._server = make_server(
            host, port, app if keys is None else _asking_for_a_key(app, keys), listener, _Handler
        )
        self._server.certificates = certificates
        self.port = self._server.server_port
        self._thread = start_thread("metrics", self._server.serve_forever, on_death)

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(WSGIRequestHandler):
    timeout = CALLER_S

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line."""


class _Listener(ThreadingWSGIServer):
    certificates: Watched[Certificates] | None = None

    def get_request(self) -> tuple[Any, Any]:
        """A connection whose handshake is still to come: in its own thread, or one caller could stop all others."""
        connection, address = super().get_request()
        if self.certificates is None:
            return connection, address
        try:
            https = self.certificates.current().https
            return https.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address
        except OSError:
            connection.close()
            raise  # which the server takes for a caller that has gone

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers who speak no TLS, show no certificate or go away are no errors of ours."""


class _ListenerV6(_Listener):
    address_family = socket.AF_INET6


def _asking_for_a_key(app: WSGIApplication, keys: Watched[Keys]) -> WSGIApplication:
    def asking(environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        name = ANONYMOUS
        try:
            key = keys.current().holder(bearer([environment.get("HTTP_AUTHORIZATION", "")]))
            name = key.name
            if Right.ADMIN not in key.rights:
                raise NotPermitted(f"this API key has not the right {Right.ADMIN}")
        except (NotAuthenticated, NotPermitted) as error:
            access.log_refusal(name, "metrics", CODES[type(error)], str(error), environment.get("REMOTE_ADDR", ""))
            start_response(STATUS[type(error)], [("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer")])
            return [f"{error}\n".encode()]
        return app(environment, start_response)

    return asking
