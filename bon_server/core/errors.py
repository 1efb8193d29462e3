"""Everything that can go wrong, as one tree. Foreign exceptions are translated where they are met.

    BonError
    ├── ConfigError            a setting is wrong; start-up or a command ends with exit code 2
    ├── StartupError           a model, the log or a port is not usable; exit code 1
    ├── LogError               the log cannot be read or written by a command; exit code 1
    │   └── LogLocked          another process holds the writer lock
    ├── TrainingError          a training set or the run that it was given to cannot go on; exit code 1
    ├── RoundFailed            a step of `bon rounds` cannot be done; exit code 1
    └── RequestError           one request cannot be answered; each leaf has one gRPC status
        ├── NotAuthenticated   no API key, or none of this server's
        ├── NotPermitted       the API key has not the right that the method needs
        ├── QuotaExceeded      the caller has used up what its keys allow
        ├── InvalidRequest     fields are malformed or out of range
        ├── UnsupportedOption  an option that this server, backend or policy does not offer
        ├── RequestIdRunning   the same request id is being answered right now
        ├── RequestIdReused    the request id belongs to another request, or cannot be replayed
        ├── UnknownRequest     feedback on a request that is not in the log
        ├── Unavailable        come back later: server full, warming up, draining, engine dead, log unavailable
        ├── LogFull            no room on the log's disk
        ├── DeadlinePassed     the deadline came before anything was scored
        ├── RequestCancelled   the caller went away
        ├── ReaderStalled      the caller did not read its stream
        ├── SenderStalled      the caller did not send its message
        ├── SamplingFailed     the policy failed on every candidate
        ├── RewardFailed       the reward model failed
        ├── NothingFinite      every reward was NaN or infinite
        └── InternalError      a bug; the cause is for the server's log only

Messages never carry prompts or completions.
"""

from __future__ import annotations

from dataclasses import dataclass


class BonError(Exception):
    """Root of all errors raised on purpose."""


class ConfigError(BonError):
    """A setting is wrong: names the setting, the value and what is allowed."""


class StartupError(BonError):
    """Something the server needs is not usable; the message is one sentence."""


class LogError(BonError):
    """The log cannot be read or written."""


class LogLocked(LogError):
    """Another process holds the writer lock; the message names it."""


class TrainingError(BonError):
    """A training set cannot be trained on, or a run cannot go on: names the file, or what is in the way."""


class RoundFailed(BonError):
    """A step of `bon rounds` cannot be done; what was done before stays, and is gone on from."""


class RequestError(BonError):
    """One request cannot be answered."""


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that is not acceptable."""

    field: str
    """Path in the proto, for example `sampling.top_p`."""
    problem: str
    """The value given and what is allowed; never prompt text."""


class InvalidRequest(RequestError):
    """Fields are malformed or out of range."""

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{v.field}: {v.problem}" for v in violations))
        self.violations = violations


class UnsupportedOption(RequestError):
    """An option that this server, backend or policy does not offer; the message names it."""


class RequestIdRunning(RequestError):
    """The same request id is being answered right now."""


class RequestIdReused(RequestError):
    """The request id belongs to another request, or to one that was logged without its content."""


class UnknownRequest(RequestError):
    """No logged request has this id."""


class NotAuthenticated(RequestError):
    """No API key, or none of this server's."""


class NotPermitted(RequestError):
    """The API key has not the right that the method needs; the message names it."""


class QuotaExceeded(RequestError):
    """The caller has used up what its keys allow."""

    def __init__(self, reason: str, retry_after_ms: int | None) -> None:
        """retry_after_ms: None where waiting does not help, because the request is larger than the whole quota."""
        super().__init__(reason)
        self.retry_after_ms = retry_after_ms


class Unavailable(RequestError):
    """The request was refused before any work; it may be tried again."""

    def __init__(self, reason: str, retry_after_ms: int) -> None:
        super().__init__(reason)
        self.retry_after_ms = retry_after_ms


class LogFull(RequestError):
    """No room on the log's disk; what was asked may be tried again once there is."""

    retry_after_ms = 1000


class DeadlinePassed(RequestError):
    """The deadline came before anything was scored."""


class RequestCancelled(RequestError):
    """The caller went away before the answer."""


class ReaderStalled(RequestError):
    """The caller did not read its stream; the answer is in the log."""


class SenderStalled(RequestError):
    """The caller did not send its message in time; nothing was done."""


class SamplingFailed(RequestError):
    """The policy failed on every candidate."""


class RewardFailed(RequestError):
    """The reward model failed."""


class NothingFinite(RequestError):
    """Every reward was NaN or infinite."""


class InternalError(RequestError):
    """A bug. Its `__cause__` goes to the server's log, never to the caller."""
