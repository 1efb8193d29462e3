"""What the operator sees at start: models, log, address, security, and one line to try."""

from __future__ import annotations

from collections.abc import Mapping

from bon_server import __version__
from bon_server.security import SecurityConfig, is_loopback
from bon_server.serving.server import Server


def banner(server: Server) -> str:
    """Several lines of plain text."""
    policy, recovery = server.policy.ref, server.spool.recovery
    listen, security = server.config.listen, server.config.security
    metrics_tls = security.tls_cert is not None and not is_loopback(listen.metrics_host)
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
        f"  gRPC      {server.address}  {_security(listen.host, security)}",
        f"  metrics   http{'s' if metrics_tls else ''}://{server.metrics_address}/metrics",
        "",
        f'  try:  bon ask "What is 7 + 5?" --all {_credentials(security)}--target {server.address}',
    ]
    return "\n".join(lines)


def _listed(facts: Mapping[str, str | int]) -> str:
    return "  ".join(f"{name.removesuffix('_bytes')} {_readable(name, value)}" for name, value in facts.items())


def _readable(name: str, value: str | int) -> str:
    return f"{value / (1 << 20):,.0f} MiB" if name.endswith("_bytes") and isinstance(value, int) else str(value)


def _security(host: str, security: SecurityConfig) -> str:
    parts = [
        "plain text" if security.tls_cert is None else "TLS" if security.tls_client_ca is None else "mutual TLS",
        "no keys" if security.api_keys is None else f"keys of {security.api_keys}",
        f"reachable from {'this machine only' if is_loopback(host) else 'other machines'}",
    ]
    if not is_loopback(host) and None in (security.tls_cert, security.api_keys):
        parts.append("SO SOMETHING THAT AUTHENTICATES MUST BE IN FRONT")
    return ", ".join(parts)


def _credentials(security: SecurityConfig) -> str:
    """The options that `bon ask` needs."""
    tls = "" if security.tls_cert is None else "--tls-ca CA.pem "
    tls += "" if security.tls_client_ca is None else "--tls-cert MINE.pem --tls-key MINE.key "
    return tls + ("" if security.api_keys is None else "--api-key-file KEY ")
