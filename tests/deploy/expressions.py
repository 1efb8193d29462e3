"""Which metrics and labels a PromQL expression names: ours, vLLM's and the process's have prefixes of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
_METRIC = re.compile(r"\b((?:bon_|vllm:|process_)[a-zA-Z0-9_:]+|up\b)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
ADDED = {"instance", "job"}
"""Labels that a scrape adds."""


def alerts() -> dict[str, str]:
    """Name of each alert and its expression."""
    groups: Any = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def panels() -> dict[str, str]:
    """Title of each panel with the letter of the query, and the query."""
    dashboard: Any = json.loads((DEPLOY / "grafana/bon.json").read_text())
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Metrics with the labels that are matched on."""
    for name, matchers in _METRIC.findall(expression):
        yield name, set(_MATCHER.findall(matchers))


def groupings(expression: str) -> set[str]:
    """Labels that are grouped by."""
    return {label.strip() for labels in _GROUPING.findall(expression) for label in labels.split(",") if label.strip()}


def unknown(expression: str, exposed: dict[str, set[str]]) -> list[str]:
    """What of an expression no server exposes. exposed: labels by name of the sample."""
    found = []
    labels: set[str] = set()
    for name, matched in selectors(expression):
        if name == "up":
            continue
        if name not in exposed:
            found.append(name)
            continue
        labels |= exposed[name]
        found += [f"{name}{{{label}}}" for label in matched - exposed[name] - ADDED]
    return found + [f"by {label}" for label in groupings(expression) - labels - ADDED]
