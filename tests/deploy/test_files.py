"""What is in deploy/, each file as far as something that runs here can judge it."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bon_server.cli import app
from bon_server.config.security import check_exposure
from bon_server.config.settings import LogConfig, load
from tests.deploy.expressions import DEPLOY

CONTAINERFILE = (DEPLOY / "Containerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yml").read_text())
UNIT = (DEPLOY / "systemd/bon.service").read_text()
MANIFESTS: dict[str, Any] = {
    one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes/bon.yml").read_text())
}
POD = MANIFESTS["StatefulSet"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]


def tool(name: str, what: str) -> str:
    """Where a checker is; those of the development environment are beside this Python."""
    found = shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if found is None:
        pytest.skip(f"{name} is not installed, so {what} is not checked by it")
    return found


def passes(*words: str) -> str:
    """What a checker that has no objection says."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_hadolint_has_no_objection() -> None:
    passes(tool("hadolint", "the Containerfile"), str(DEPLOY / "Containerfile"))


def test_the_compose_file_fits_its_schema() -> None:
    words = tool("check-jsonschema", "the compose file"), "--builtin-schema", "vendor.compose-spec"
    passes(*words, str(DEPLOY / "compose.yml"))


def test_the_manifests_fit_their_schemas() -> None:
    said = passes(tool("kubernetes-validate", "the manifests"), "--strict", str(DEPLOY / "kubernetes/bon.yml"))
    assert said.count("passed") == len(MANIFESTS) == 4


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze", "the unit")
    unit = tmp_path / "bon.service"
    unit.write_text(UNIT.replace("/opt/bon/bin/bon", "/bin/true"))
    assert passes(analyze, "verify", str(unit)) == ""
    passes(analyze, "security", "--offline=true", "--threshold=25", str(unit))


def commands() -> dict[str, list[str]]:
    """Every command line of ours in these files, by place."""
    instructions = dict(re.findall(r"^(CMD|ENTRYPOINT) (\[.*\])$", CONTAINERFILE, re.MULTILINE))
    start = re.search(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)
    assert start is not None
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    return {
        "Containerfile": yaml.safe_load(instructions["ENTRYPOINT"]) + yaml.safe_load(instructions["CMD"]),
        "unit": shlex.split(start[1]),
        "manifest": ["bon", *CONTAINER["args"]],
        **{name: CONTAINER[name]["exec"]["command"] for name in probes},
        "health of the container": shlex.split(
            "bon health " + str(re.search(r'HEALTH_OPTIONS="(.*)"', CONTAINERFILE)[1])  # type: ignore[index]
        ),
    }


@pytest.mark.parametrize(("place", "words"), commands().items(), ids=commands().keys())
def test_their_commands_are_ours(place: str, words: list[str]) -> None:
    program, *options = words
    assert Path(program).name == "bon"
    command, _, _ = app.parse_args(options, exit_on_error=False, print_error=False)
    assert command.__name__ in ("serve", "health")


def test_the_configuration_is_one_and_can_be_read() -> None:
    file = DEPLOY / "bon.toml"
    assert tomllib.loads(MANIFESTS["ConfigMap"]["data"]["bon.toml"]) == tomllib.loads(file.read_text())
    config = load(file, {})
    assert config.log.directory.startswith("/var/lib/bon/")
    check_exposure(
        {"listen.host": config.listen.host, "listen.metrics_host": config.listen.metrics_host}, config.security
    )
    assert not config.security.allow_insecure


def test_there_is_time_to_drain() -> None:
    config = tomllib.loads((DEPLOY / "bon.toml").read_text())
    needed_s = config["limits"]["drain_s"] + LogConfig().publish_close_s + 20  # engines, sealing
    before_s = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert POD["terminationGracePeriodSeconds"] >= needed_s + before_s
    assert int(COMPOSE["services"]["bon"]["stop_grace_period"].removesuffix("s")) >= needed_s
    timeout = re.search(r"^TimeoutStopSec=(\d+)s$", UNIT, re.MULTILINE)
    assert timeout is not None and int(timeout[1]) >= needed_s
    assert re.search(r"^KillSignal=SIGTERM$", UNIT, re.MULTILINE) and "STOPSIGNAL SIGTERM" in CONTAINERFILE


def test_no_root_and_nothing_to_write_but_the_log() -> None:
    user = re.findall(r"^USER (\d+):(\d+)$", CONTAINERFILE, re.MULTILINE)[-1]
    service = COMPOSE["services"]["bon"]
    assert user == ("10001", "10001") == tuple(service["user"].split(":"))
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert POD["securityContext"]["runAsNonRoot"] and POD["securityContext"]["runAsUser"] == 10001
    security = CONTAINER["securityContext"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    writable = {one["mountPath"] for one in CONTAINER["volumeMounts"] if not one.get("readOnly")}
    assert writable == {"/var/lib/bon", "/tmp", "/dev/shm"}


def test_mounts_and_secrets_are_there() -> None:
    volumes = {one["name"] for one in POD["volumes"]}
    volumes |= {one["metadata"]["name"] for one in MANIFESTS["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    assert {one["name"] for one in CONTAINER["volumeMounts"]} == volumes
    files = [
        line for line in paths(COMPOSE) if line.startswith("./") and "secrets" not in line and "models" not in line
    ]
    assert files and [name for name in files if not (DEPLOY / name.partition(":")[0]).exists()] == []
    prometheus = (DEPLOY / "prometheus/prometheus.yml").read_text()
    for name in COMPOSE["secrets"]:
        assert f"/run/secrets/{name}" in prometheus


def paths(node: Any) -> Iterator[str]:
    """All strings in a document."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        yield from itertools.chain.from_iterable(map(paths, node.values() if isinstance(node, dict) else node))
