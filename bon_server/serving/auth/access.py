"""Who may call what. Deny by default: a method is open to whom `RIGHTS` says, and to nobody where it says nothing.

The check comes before a handler is looked up and before anything of the message is read. Each refused call is one line
of the server's log, without content: not even the name of an unknown method.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from enum import Enum
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf import descriptor_pool

from bon_server.core.errors import NotAuthenticated, NotPermitted, RequestError, StartupError
from bon_server.serving.auth.keys import Keys, Right
from bon_server.serving.auth.watched import Watched
from bon_server.serving.status import to_status

logger = logging.getLogger("bon.audit")


def log_refusal(principal: str, method: str, code: grpc.StatusCode, reason: str, peer: str) -> None:
    """The values are fields of the log record as well, for handlers that write JSON.

    principal: empty where the caller has not shown who it is; method: one of ours; reason: the server's own words.
    """
    fields = {"principal": principal, "method": method, "code": code.name, "reason": reason, "peer": peer}
    logger.warning(
        "refused principal=%(principal)s method=%(method)s code=%(code)s peer=%(peer)s reason=%(reason)s",
        fields,
        extra=fields,
    )


ANONYMOUS: Final = ""
"""Who calls a server that has no keys."""
UNKNOWN_METHOD: Final = "unknown"

_principal: ContextVar[str] = ContextVar("principal", default=ANONYMOUS)


class Access(Enum):
    """Of methods that need no right of their own."""

    OPEN = "no key"
    """Probes and load balancers have none, and it tells only whether the server can serve."""
    ANY_KEY = "any key"


RIGHTS: dict[str, Right | Access] = {
    "/bon.v1.BestOfNService/Generate": Right.GENERATE,
    "/bon.v1.BestOfNService/GenerateStream": Right.GENERATE,
    "/bon.v1.BestOfNService/Score": Right.SCORE,
    "/bon.v1.BestOfNService/RecordFeedback": Right.FEEDBACK,
    "/bon.v1.BestOfNService/GetServerInfo": Access.ANY_KEY,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Access.ANY_KEY,
    "/grpc.health.v1.Health/Check": Access.OPEN,
    "/grpc.health.v1.Health/List": Access.OPEN,
    "/grpc.health.v1.Health/Watch": Access.OPEN,
}

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continue = Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]]


def principal() -> str:
    """Who makes the call that is being handled."""
    return _principal.get()


def check_rights(services: Sequence[str]) -> None:
    """Raises `StartupError` for a method of these services that nobody has decided on."""
    for service in services:
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            if f"/{service}/{method.name}" not in RIGHTS:
                raise StartupError(f"no right is declared for /{service}/{method.name}")


class Authentication(grpc.aio.ServerInterceptor):
    """Lets a call through to its handler, with `principal()` set, or refuses it."""

    def __init__(self, keys: Watched[Keys], refused: Callable[[str, str], None]) -> None:
        """refused: told the method and the code's name."""
        self._keys = keys
        self._refused = refused

    async def intercept_service(self, continuation: Continue, details: grpc.HandlerCallDetails) -> Handler | None:
        """As gRPC calls it."""
        access = RIGHTS.get(details.method)
        if access is Access.OPEN:
            return await continuation(details)
        try:
            key = (await self._keys.current_off_loop()).holder(_presented(details))
        except NotAuthenticated as error:
            return self._refusing(error, ANONYMOUS, details.method)
        if isinstance(access, Right) and access not in key.rights:
            return self._refusing(NotPermitted(f"this API key has not the right {access}"), key.name, details.method)
        _principal.set(key.name)
        return None if access is None else await continuation(details)

    def _refusing(self, error: RequestError, name: str, method: str) -> Handler:
        """A handler that reads nothing; on the wire a call of any kind is a stream of streams."""
        method = method if method in RIGHTS else UNKNOWN_METHOD
        code, message, trailing = to_status(error, method)

        async def refuse(_: object, context: Any) -> AsyncIterator[bytes]:
            log_refusal(name, method, code, message, context.peer())
            self._refused(method.rpartition("/")[2], code.name)
            await context.abort(code, message, trailing)
            yield b""  # never: this makes it a stream

        return grpc.stream_stream_rpc_method_handler(refuse)


def _presented(details: grpc.HandlerCallDetails) -> str:
    given = [value for name, value in details.invocation_metadata if name == "authorization"]
    return bearer(given)


def bearer(given: Sequence[str | bytes]) -> str:
    """The key in `authorization: Bearer KEY`; given: the values of that header. Raises `NotAuthenticated`."""
    if len(given) != 1:
        raise NotAuthenticated("this server wants one API key, as metadata `authorization: Bearer KEY`")
    scheme, _, key = str(given[0]).partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise NotAuthenticated("this server wants one API key, as metadata `authorization: Bearer KEY`")
    return key.strip()
