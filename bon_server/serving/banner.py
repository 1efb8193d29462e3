"""What the operator sees at start: models, log, address, security, and one line to try."""

from __future__ import annotations

from collections.abc import Mapping

from bon_server import __version__
from bon_server.serving.server import Server

LOOPBACK = ("127.", "localhost", "[::1]")


def banner(server: Server) -> str:
    """Several lines of plain text."""
    policy, recovery = server.policy.ref, server.spool.recovery
    lines = [
        f"bon-server {__version__}",
        f"  policy    {policy.id}  revision {policy.revision[:12]}  {_listed(server.policy.facts)}",
        *([f"  watching  {server.config.policy.watch}"] if server.config.policy.watch else []),
        *(
            f"  reward    {ref.name}: {ref.id}  revision {ref.revision[:12]}  {_listed(server.reward_model.facts)}"
            for ref in server.reward_model.refs
        ),
        f"  log       {server.config.log.directory}  durability {server.config.log.durability}  {recovery}",
        *([f"  publish   {server.config.log.publish}"] if server.config.log.publish else []),
        f"  gRPC      {server.address}  {_security(server.address)}",
        f"  metrics   http://{server.metrics_address}/metrics",
        "",
        f'  try:  bon ask "What is 7 + 5?" --all --target {server.address}',
    ]
    return "\n".join(lines)


def _listed(facts: Mapping[str, str | int]) -> str:
    return "  ".join(f"{name.removesuffix('_bytes')} {_readable(name, value)}" for name, value in facts.items())


def _readable(name: str, value: str | int) -> str:
    return f"{value / (1 << 20):,.0f} MiB" if name.endswith("_bytes") and isinstance(value, int) else str(value)


def _security(address: str) -> str:
    if address.startswith(LOOPBACK):
        return "plain text, no keys; reachable from this machine only"
    return "PLAIN TEXT, NO KEYS, reachable from other machines: put a proxy that authenticates in front"
