"""Every case of the catalogue: what the caller sees, and a server and a log that are then as if nothing had been."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count

import grpc
import pytest
import pytest_asyncio

from tests.faults.case import Case
from tests.faults.catalogue import CATALOGUE
from tests.faults.place import CANARY, Kind, Place, Seen, opened

pytestmark = pytest.mark.asyncio(loop_scope="module")
_numbers = count(1)
CASE_S = 60.0
"""More than any takes on a busy machine: a caller who waits for ever is a failure and not a hang."""
REFUSED_AS_SUCH = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)


class Places:
    """One server for all cases that come one after the other and want the same kind: that it goes on is tested too."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._kind: Kind | None = None
        self._opened = AsyncExitStack()
        self._place: Place | None = None

    async def of(self, kind: Kind) -> Place:
        """A place where the last case went well, or a new one."""
        if self._place is None or self._kind is not kind:
            await self.close()
            self._place = await self._opened.enter_async_context(opened(self._folders.mktemp("place"), kind))
            self._kind = kind
        return self._place

    async def close(self) -> None:
        """Ends the server, if there is one."""
        self._place = None
        await self._opened.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def places(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Places]:
    places = Places(tmp_path_factory)
    yield places
    await places.close()


def fits(case: Case, seen: Seen) -> None:
    """What the caller saw is what is promised."""
    assert seen.ended is case.ends, seen
    said = seen.said
    if case.field and seen.refused is not None:
        if case.ends is grpc.StatusCode.INVALID_ARGUMENT:
            said = seen.refused.violations[case.field]
            assert said in seen.refused.details
        else:
            assert said.startswith(case.field)
    for words in case.says:
        assert words in said
    assert "\n" not in seen.said
    assert CANARY not in (seen.refused.everything_said if seen.refused else seen.said)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{section.name}: {case}") for section in CATALOGUE for case in section.cases]
)
async def test_fault(places: Places, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    place = await places.of(case.kind)
    try:
        async with asyncio.timeout(CASE_S):
            seen = await happens(place, case)
    except BaseException:
        await places.close()  # the next case must not suffer for it
        raise
    if case.ends_server:
        await places.close()
    assert CANARY not in caplog.text
    if seen.ended is grpc.StatusCode.INTERNAL:
        assert seen.said.split()[2].rstrip(";") in caplog.text, "the operator finds what the caller was not told"


async def happens(place: Place, case: Case) -> Seen:
    """Makes it happen and looks at what is left of it."""
    place.begin(f"case-{next(_numbers)}")
    try:
        seen = await case.happens(place)
    finally:
        place.patch.undo()
    await place.at_rest()
    fits(case, seen)
    if seen.ended in REFUSED_AS_SUCH:
        others = f"{place.request_id}-"
        assert all(row.request_id.startswith(others) for row in place.rows())
    for check in case.checks:
        check.holds(place, seen)
    if case.ends_server:
        await place.server.drain(0)
        await place.server.stop()
        async with opened(place.log.parent, case.kind) as again:
            await again.at_baseline(case.damages)
    else:
        place.begin("")  # the models do as usual again
        await place.at_baseline(case.damages)
    return seen
