"""One line for each call that was refused for who made it. No content: not even the name of an unknown method."""

from __future__ import annotations

import logging

import grpc

logger = logging.getLogger("bon.audit")


def refused(principal: str, method: str, code: grpc.StatusCode, reason: str, peer: str) -> None:
    """The values are fields of the log record as well, for handlers that write JSON.

    principal: empty where the caller has not shown who it is; method: one of ours; reason: the server's own words.
    """
    fields = {"principal": principal, "method": method, "code": code.name, "reason": reason, "peer": peer}
    logger.warning(
        "refused principal=%(principal)s method=%(method)s code=%(code)s peer=%(peer)s reason=%(reason)s",
        fields,
        extra=fields,
    )
