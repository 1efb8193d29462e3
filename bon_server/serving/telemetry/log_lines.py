"""The server's own lines: for people or as JSON, each with the id of the request it is about. Never with content."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from textwrap import indent
from typing import Final

from bon.visible import visible, visible_json

from bon_server.config.settings import LogFormat

_request_id: ContextVar[str] = ContextVar("request_id", default="")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id"}
"""What every entry has; anything else was given as `extra`."""


def about(request_id: str) -> None:
    """What this task, and those it starts, log from now on is about this request. The id must have been checked."""
    _request_id.set(request_id)


def set_up(log_format: LogFormat) -> None:
    """Sends what is logged to stderr."""
    logging.getLogger("grpc._cython.cygrpc").addFilter(_tells_of_ourselves)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format is LogFormat.JSON else HumanLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


OF_CALLERS: Final = (
    "Invalid encoding on ",  # with the value of the metadata, which may be a key
    "ExecuteBatchError raised in core by servicer method ",  # somebody left before the answer
)
"""What gRPC logs, with a traceback, where nothing is wrong with the server. Callers could fill the log with it."""


def _tells_of_ourselves(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(OF_CALLERS)


class HumanLines(logging.Formatter):
    """Time, level, logger, message, and the request in brackets: one line, and a traceback indented below.

    So whatever is quoted, a line that begins with a time is one that this server wrote.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line, and what belongs below it."""
        record.message, record.asctime = record.getMessage(), self.formatTime(record)
        request_id = _request_id.get()
        line = self.formatMessage(record) + (f" [request {request_id}]" if request_id else "")
        # Not `record.exc_text`: another handler may have left the traceback there as it is.
        below = [self.formatException(record.exc_info)] if record.exc_info else []
        below += [self.formatStack(record.stack_info)] if record.stack_info else []
        return "\n".join([visible(line), *(indent(visible(text, lines=True), "    ") for text in below)])


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, request_id where there is one, extras, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := _request_id.get():
            line["request_id"] = request_id
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return visible_json(json.dumps(line, ensure_ascii=False, default=str))
