"""Alerts and dashboard name only what a real server exposes, and the alerts fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from bon.v1 import bon_pb2 as pb
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import StartServer
from tests.deploy.expressions import DEPLOY, alerts, groupings, panels, selectors, unknown
from tests.fakes import ScriptedPolicy
from tests.serving.conftest import Run
from tests.serving.conftest import run as run  # a fixture
from tests.serving.running import Running

RULES_TEST = Path(__file__).parent / "alerts_test.yml"
RUNBOOK = Path(__file__).parents[2] / "docs/operating.md"


async def exposed(running: Running) -> dict[str, set[str]]:
    """Labels by the names that a scrape has."""
    await running.ask()
    await running.stub.Score(pb.ScoreRequest(text="q", completions=["a"]))
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(running._scrape())
        for sample in family.samples
    }


async def test_all_that_is_asked_for_is_there(run: Run, tmp_path: Path) -> None:
    from bon_server.system.telemetry import Telemetry

    settings = {"log.publish": f"file://{tmp_path / 'published'}"}
    there = await exposed(await run(ScriptedPolicy(engines=(Telemetry(),)), settings=settings))
    asked = alerts() | {name: query for name, query in panels().items() if "vllm:" not in query}
    assert len(asked) > 40
    assert {name: missing for name, query in asked.items() if (missing := unknown(query, there))} == {}


async def test_what_is_not_there_would_be_found(start_server: StartServer) -> None:
    there = {"bon_engine_up": {"role"}}
    assert unknown('sum by (role, method) (bon_engine_up{rule="x", job="bon"})', there) == [
        "bon_engine_up{rule}",
        "by method",
    ]
    assert unknown("rate(bon_engine_down[5m]) > 0", there) == ["bon_engine_down"]
    assert list(selectors('up{job="bon"} == 0')) == [("up", {"job"})]
    assert groupings("sum by (a, b) (x) / on(c) y") == {"a", "b", "c"}


def test_every_alert_has_a_runbook() -> None:
    page = RUNBOOK.read_text(encoding="utf-8")
    assert [name for name in alerts() if not re.search(rf"^### {name}$", page, re.MULTILINE)] == []
    assert sorted(re.findall(r"^### (Bon\w+)$", page, re.MULTILINE)) == sorted(alerts())


def test_the_rules_fire_when_they_should(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool, of Prometheus, is not on the PATH")
    words = [promtool, "check", "rules", "--lint-fatal", str(DEPLOY / "prometheus/alerts.yml")]
    subprocess.run(words, check=True, capture_output=True)
    config = DEPLOY / "prometheus/prometheus.yml"
    subprocess.run([promtool, "check", "config", "--syntax-only", str(config)], check=True, capture_output=True)
    done = subprocess.run([promtool, "test", "rules", str(RULES_TEST)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_queries_of_the_dashboard_are_promql(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool, of Prometheus, is not on the PATH")
    queries = [query.replace("$__rate_interval", "1m").replace("$instance", ".*") for query in panels().values()]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried() -> None:
    tried = {
        test["alertname"]
        for case in yaml.safe_load(RULES_TEST.read_text())["tests"]
        for test in case.get("alert_rule_test", ())
        if test.get("exp_alerts")
    }
    assert set(alerts()) == tried


def test_the_dashboard_is_laid_out() -> None:
    dashboard = json.loads((DEPLOY / "grafana/bon.json").read_text())
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    taken = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(taken) == len(set(taken)), "panels overlap"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)
