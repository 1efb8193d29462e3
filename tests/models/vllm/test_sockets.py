"""What engines open for themselves, as the kernel lists it: nothing that another machine could reach."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bon_server.models.vllm.policy import VllmPolicy

Address = IPv4Address | IPv6Address
LISTENS = "0A"


def processes(pid: int) -> Iterator[int]:
    """It and all that come from it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from processes(int(child))


def sockets_of(pid: int) -> set[str]:
    """Inodes of a process's sockets."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = str(descriptor.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        if name.startswith("socket:["):
            found.add(name[len("socket:[") : -1])
    return found


def listening(pid: int) -> Iterator[tuple[Address, int]]:
    """Addresses and ports on which a process and its descendants accept connections."""
    own = set().union(*(sockets_of(each) for each in processes(pid)))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTENS and rest[5] in own:
                address, _, port = local.partition(":")
                yield _address(address), int(port, 16)


def _address(in_hex: str) -> Address:
    """The kernel prints 32-bit words as they lie in the memory of a little-endian machine."""
    words = bytes.fromhex(in_hex)
    there = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    return IPv4Address(there) if len(there) == 4 else IPv6Address(there)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_the_list_has_what_listens(host: str) -> None:
    """Or the test below would say nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    before = set(listening_here())
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        added = set(listening_here()) - before
    assert {(str(address), number) for address, number in added} == {(host, port)}


def listening_here() -> Iterator[tuple[Address, int]]:
    return listening(os.getpid())


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="session")
async def test_an_engine_listens_on_loopback_at_most(policy: VllmPolicy) -> None:
    found = set(listening_here())
    assert len(list(processes(os.getpid()))) > 1, "the engine has a process of its own"
    assert found, "torch's backend listens somewhere"
    assert not [each for each in found if not each[0].is_loopback], found
    # Where the name of this machine points to loopback, the list alone would not show what is missing.
    assert {os.environ[f"{backend}_SOCKET_IFNAME"] for backend in ("GLOO", "NCCL")} <= {"lo", "lo0"}
