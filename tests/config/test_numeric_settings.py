"""Every numeric setting has both bounds, absurd values are refused in a sentence, and allowed extremes work."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bon_server.config.numbers import Range, numbers
from bon_server.config.settings import Config, LogConfig, load
from bon_server.core.errors import ConfigError, StartupError
from bon_server.log.seal import sealer
from bon_server.log.seal.sealer import Sealer
from bon_server.log.spool.spool import Spool
from bon_server.models.policy.synthetic import SyntheticPolicy, SyntheticPolicyOptions
from bon_server.models.reward.synthetic import SyntheticReward, SyntheticRewardOptions
from tests.conftest import StartServer
from tests.log.records import record

ABSURD = ["inf", "-inf", "nan", "1e300", "-1e300", str(10**30), "9" * 5000, "-1", "0", "0.5", "1e-300", "-0.0", ""]
SETTINGS = numbers(Config)
SPECS = {
    **{f"policy {name}": one for name, one in numbers(SyntheticPolicyOptions).items()},
    **{f"reward {name}": one for name, one in numbers(SyntheticRewardOptions).items()},
}
NEEDS_MORE = {
    "listen.port": "may be taken by somebody",
    "listen.metrics_port": "may be taken by somebody",
    "policy.restarts": "needs an engine",
    "reward.weights": "needs several reward models",
    "reward.std_factor": "needs several reward models",
    "log.min_free_bytes": "its highest value refuses all work, on purpose",
    "defaults.n": "may not be above limits.max_n",
    "limits.max_n": "may not be above limits.max_candidates_in_flight",
}
"""What cannot be tried alone."""


@pytest.mark.parametrize(("key", "one"), [*SETTINGS.items(), *SPECS.items()])
def test_every_number_has_both_bounds(key: str, one: Range) -> None:
    assert one.low is not None and one.high is not None, f"{key} may be {one}"
    assert math.isfinite(one.low) and math.isfinite(one.high)


def _allowed(one: Range, text: str) -> bool:
    try:
        return one.holds(float(text))
    except (ValueError, OverflowError):
        return False


@pytest.mark.parametrize("source", ["flag", "environment", "file"])
@pytest.mark.parametrize("key", SETTINGS)
def test_absurd_values_are_refused_by_name(key: str, source: str, tmp_path: Path) -> None:
    section, _, name = key.partition(".")
    one = SETTINGS[key]
    for text in ABSURD:
        if _allowed(one, text):
            continue
        value: Any = {"r": text} if key == "reward.weights" else text
        file = tmp_path / "bon.toml"
        written = f"{{ r = {_toml(text)} }}" if key == "reward.weights" else _toml(text)
        file.write_text(f"[{section}]\n{name} = {written}\n")
        variable = {f"BON_{section}_{name}".upper(): value}
        with pytest.raises(ConfigError) as caught:
            load(
                file if source == "file" else None,
                variable if source == "environment" else {},
                {key: value} if source == "flag" else {},
            )
        said = str(caught.value)
        assert f"{key} = " in said and str(one) in said and "\n" not in said, said


def _toml(text: str) -> str:
    """As a number where TOML has it."""
    return text if text in ("inf", "-inf", "nan", "1e300", "-1e300", "-1", "0", "0.5", "1e-300") else f'"{text}"'


@pytest.mark.parametrize("key", SPECS)
def test_absurd_options_of_models_are_refused_by_name(key: str) -> None:
    model, _, name = key.partition(" ")
    for text in ABSURD:
        if _allowed(SPECS[key], text):
            continue
        with pytest.raises(ConfigError) as caught:
            made = SyntheticPolicy if model == "policy" else SyntheticReward
            made.from_spec(f"synthetic:{name}={text}")
        assert name in str(caught.value) and str(SPECS[key]) in str(caught.value)


def _extremes() -> Iterator[tuple[str, float]]:
    for key, one in SETTINGS.items():
        assert one.low is not None and one.high is not None
        for bound, allowed in ((one.low, one.low_is_allowed), (one.high, one.high_is_allowed)):
            if key not in NEEDS_MORE and allowed:
                yield key, int(bound) if one.kind == "integer" else bound


@pytest.mark.parametrize("highest", [False, True])
async def test_a_server_runs_at_all_extremes_together(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, highest: bool
) -> None:
    """Also through sealing and retention, whose threads would end by what they cannot compute with."""
    monkeypatch.setattr(sealer, "CHECK_S", 0.01)
    both: dict[str, list[float]] = {}
    for key, value in _extremes():
        both.setdefault(key, []).append(value)
    settings = {key: values[-1 if highest else 0] for key, values in both.items()}
    server = await start_server(**{**settings, "limits.max_n": 1, "defaults.n": 1})
    await server.drain(0.0)
    await server.stop()
    assert server.broken is None


@pytest.mark.long
@pytest.mark.parametrize(("key", "value"), list(_extremes()))
async def test_a_server_runs_at_each_extreme(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, key: str, value: float
) -> None:
    monkeypatch.setattr(sealer, "CHECK_S", 0.01)
    more = {"limits.max_n": 1, "defaults.n": 1} if key == "limits.max_candidates_in_flight" else {}
    server = await start_server(**{**more, key: value})
    await server.drain(0.0)
    await server.stop()
    assert server.broken is None


@pytest.mark.parametrize("key", ["replay_window_s", "retain_days", "seal_bytes", "seal_age_s", "retain_bytes"])
def test_sealing_works_at_each_extreme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr(sealer, "CHECK_S", 0.01)
    monkeypatch.setattr(sealer, "EXPIRE_S", 0.01)
    one = SETTINGS[f"log.{key}"]
    for number, bound in enumerate((one.low, one.high)):
        assert bound is not None
        value = int(bound) if one.kind == "integer" else bound
        settings: dict[str, Any] = {"seal_age_s": 0.001, "retain_days": 1.0, key: value}
        config = LogConfig(**settings)
        with closing(Spool.open(tmp_path / str(number), config)) as spool, closing(Sealer(spool, config)) as sealing:
            spool.append([record()])
            until_s = time.monotonic() + 15
            while not (sealing.sealed_records or value == one.high) and time.monotonic() < until_s:
                time.sleep(0.01)
        assert spool.failure is None and sealing.failures == sealing.expire_failures == 0


async def test_what_refuses_all_work_starts_all_the_same(start_server: StartServer) -> None:
    highest = SETTINGS["log.min_free_bytes"].high
    assert highest is not None
    server = await start_server(**{"log.min_free_bytes": int(highest)})
    assert server.spool.full and server.broken is None


async def test_a_message_that_a_machine_has_no_memory_for_is_no_start(start_server: StartServer) -> None:
    with pytest.raises((ConfigError, StartupError)):
        await start_server(**{"limits.max_message_bytes": 1 << 31})
