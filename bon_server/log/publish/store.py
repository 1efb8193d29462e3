"""Where segments are published: a bucket of an object store, or a folder, through the package `obstore`.

Nothing is ever overwritten, but for an erasure, which replaces what it has read. A call is tried once, within a time
limit; who calls decides what is tried again. A folder gets its files by our own hands: obstore's do not sync, and a
power cut could leave a torn file under a name that is then taken for good.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from bon_server.core.errors import ConfigError, LogError, StartupError
from bon_server.log.segments.files import FEEDBACK_FOLDER, FOLDER
from bon_server.system.files import make_folder, sync_folder, whole_file

SCHEMES: Final = ("file", "s3", "gs", "az")
FAILURES: Final = (
    "credentials",
    "missing",
    "refused",
    "server",
    "timeout",
    "connection",
    "folder",
    "other",
    "conflict",
    "local",
)
_FOLDERS: Final = (FOLDER, FEEDBACK_FOLDER)
CONNECT_S = 10.0
"""How long a connection may take to be made."""
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_HTTP_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")
_CREDENTIALS = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch")


class StoreError(LogError):
    """A call failed. Its message names the object and holds neither credentials nor what a store answered."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """One of `FAILURES`; `conflict` and `local` where one object is the trouble, not the store."""


class Object(NamedTuple):
    """What was read."""

    content: bytes
    version: dict[str, str]
    """What the store knows this content by."""


class Store:
    """One URI.

    uri: `file:///folder`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://account/container/prefix`. options_file:
    TOML, with what obstore's store of that kind is configured by, and in `[client_options]` its client; what is not
    there comes from the environment, as the clouds' own tools have it. timeout_s: of one call.

    Raises `ConfigError` for a URI or options that cannot be, `StartupError` when obstore is missing, and `StoreError`.
    """

    def __init__(self, uri: str, options_file: str | None, timeout_s: float) -> None:
        try:
            import obstore
            from obstore.store import LocalStore, from_url
        except ImportError as error:
            raise StartupError("publishing needs obstore: install bon-server with its extra [publish]") from error
        self._folder = folder_of(uri)
        self.uri = uri.rstrip("/")
        self._api: Any = obstore
        self._store: Any
        if self._folder is not None:
            with self._naming(""):
                make_folder(self._folder)
                self._store = LocalStore(self._folder)
            return
        connect: Any = from_url
        with self._naming("", ConfigError):
            self._store = connect(uri, retry_config={"max_retries": 0}, **_options(options_file, timeout_s))

    def put(self, name: str, content: bytes) -> bool:
        """Makes an object; False when the name is taken, and then nothing is changed."""
        with self._naming(name):
            try:
                if self._folder is not None:
                    _place(self._folder / name, content)
                else:
                    # `create` never uploads in parts, so that the object appears whole.
                    self._api.put(self._store, name, content, mode="create")
            except (self._api.exceptions.AlreadyExistsError, FileExistsError):
                return False
            return True

    def is_at(self, name: str, path: Path) -> bool:
        """Whether an object is this very file: no copy of it."""
        return self._folder is not None and _same(self._folder / name, path)

    def size_bytes(self, name: str) -> int:
        """Of an object."""
        with self._naming(name):
            return int(self._api.head(self._store, name)["size"])

    def sha256(self, name: str) -> str:
        """Of an object (hexadecimal), which is read for it."""
        digest = hashlib.sha256()
        with self._naming(name):
            for chunk in self._api.get(self._store, name).stream():
                digest.update(chunk)
        return digest.hexdigest()

    def read(self, name: str) -> Object | None:
        """An object, whole; None: it is not there."""
        with self._naming(name):
            try:
                got = self._api.get(self._store, name)
                version = {key: got.meta[key] for key in ("e_tag", "version") if got.meta.get(key) is not None}
                return Object(bytes(got.bytes()), version)
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None

    def replace(self, name: str, content: bytes, seen: Object) -> None:
        """Replaces an object, in one step, if it still is what was read. Readers meet the old or the new one."""
        with self._naming(name):
            if self._folder is not None:
                with whole_file(self._folder / name) as file:
                    file.write(content)
                return
            try:
                self._api.put(self._store, name, content, mode=seen.version)
            except self._api.exceptions.PreconditionError:
                raise StoreError("conflict", f"{self.uri}/{name} changed while it was being replaced") from None

    @contextmanager
    def _naming(self, name: str, wrong_options: type[ConfigError] | None = None) -> Iterator[None]:
        """Foreign exceptions as ours. wrong_options: what obstore's own are while a store is being made."""
        try:
            yield
        except StoreError:
            raise
        except (self._api.exceptions.BaseError, LogError, OSError, ValueError, TypeError) as error:
            if wrong_options is not None:
                raise wrong_options(f"{self.uri}: {_first_line(error)}") from None
            kind, why = _kind(error, self._api.exceptions)
            # The cause is left out: it quotes the request, whose address may be a signed one.
            raise StoreError(kind, f"{self.uri}/{name}: {why}") from None


def check_uri(uri: str) -> None:
    """Raises `ConfigError` for what is no place to publish to."""
    parts = urlsplit(uri)
    here = parts.scheme == "file"
    usable = parts.path.startswith("/") and len(parts.path) > 1 and not parts.netloc if here else bool(parts.netloc)
    if parts.scheme not in SCHEMES or not usable:
        allowed = "file:///folder, s3://bucket/prefix, gs://bucket/prefix and az://account/container/prefix"
        raise ConfigError(f"log.publish = {uri!r}: allowed are {allowed}")


def folder_of(uri: str) -> Path | None:
    """None: it is no folder of this machine. Raises `ConfigError` as `check_uri` does."""
    check_uri(uri)
    return Path(unquote(urlsplit(uri).path)) if uri.startswith("file:") else None


def check_apart(directory: Path, uri: str) -> None:
    """Raises `ConfigError` when publishing there would put the files of a log onto themselves, or into the log.

    Folders are compared by identity, through links and bind mounts. A log in the published folder is well there, but
    not where that has its segments.
    """
    target = folder_of(uri)
    if target is None:
        return
    log, there = directory.resolve(), target.resolve()
    inside = _is_within(there, log) or any(_is_within(log, there / folder) for folder in _FOLDERS)
    if inside or any(_same(directory / folder, target / folder) for folder in _FOLDERS):
        raise ConfigError(
            f"log.publish = {uri!r}: that is in the log {directory} itself, or has it among its segments; published "
            "copies need a folder of their own, because the local file may be removed once there is one"
        )


def _is_within(path: Path, folder: Path) -> bool:
    return any(_same(each, folder) for each in (path, *path.parents)) or path.is_relative_to(folder)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False  # one is not there yet


def _options(file: str | None, timeout_s: float) -> dict[str, Any]:
    """Read anew for each store, so that credentials may change."""
    client = {"timeout": f"{timeout_s}s", "connect_timeout": f"{min(CONNECT_S, timeout_s)}s"}
    if file is None:
        return {"client_options": client}
    try:
        values = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError("credentials", f"log.publish_options = {file!r} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise StoreError("credentials", f"log.publish_options = {file!r} is not TOML") from None
    client |= values.pop("client_options", {})
    return {"config": values, "client_options": client}


def _place(path: Path, content: bytes) -> None:
    """A file that appears whole, and only where there is none. Raises FileExistsError."""
    make_folder(path.parent)
    # A name of its own: an upload that hangs in an earlier process may still be writing.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename it replaces nothing
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _kind(error: Exception, known: Any) -> tuple[str, str]:
    """Which kind of `StoreError` it is, and why, in words that hold nothing of the request."""
    text = str(error)
    status, code, http = (pattern.search(text) for pattern in (_STATUS, _CODE, _HTTP_KIND))
    said = " ".join(match[1] for match in (status, code) if match)
    if isinstance(error, known.PermissionDeniedError | known.UnauthenticatedError) or (
        code and code[1] in _CREDENTIALS
    ):
        return "credentials", f"the store refuses the credentials ({said or type(error).__name__})"
    if isinstance(error, FileNotFoundError):
        return "missing", f"there is no such bucket, folder or object ({said or 'not found'})"
    if isinstance(error, OSError | LogError):
        return "folder", str(error) if isinstance(error, LogError) else error.strerror or type(error).__name__
    if status:
        return ("server" if status[1] >= "500" else "refused"), f"the store answered {said}"
    if http:
        timed_out = http[1] == "Timeout"
        return ("timeout", "no answer in time") if timed_out else ("connection", f"no connection ({http[1]})")
    return "other", type(error).__name__


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
