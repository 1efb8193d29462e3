"""Configuration: order of the sources, ranges, and errors that name key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bon_server.config.settings import Config, load, parse_assignments
from bon_server.config.specs import split_name
from bon_server.core.errors import ConfigError
from bon_server.core.types import Durability
from bon_server.models.policy.synthetic import SyntheticPolicy


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bon.toml"


def test_no_source_gives_the_defaults() -> None:
    assert load(None, {}) == Config()


def test_flags_beat_environment_beats_file(file: Path) -> None:
    file.write_text("[limits]\nmax_n = 10\ndrain_s = 1.5\n[defaults]\nn = 4\n[log]\ndurability = 'fsync'\n")
    environment = {"BON_LIMITS_MAX_N": "20", "BON_DEFAULTS_N": "5", "PATH": "/bin", "BON_HOME": "elsewhere"}
    config = load(file, environment, {"limits.max_n": "30", "defaults.temperature": None})
    assert (config.limits.max_n, config.defaults.n, config.limits.drain_s) == (30, 5, 1.5)
    assert config.defaults.temperature == Config().defaults.temperature
    assert config.log.durability is Durability.FSYNC


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"limits.max_n": "0"}, ("limits.max_n", "'0'", ">= 1")),
        ({"limits.max_n": "many"}, ("limits.max_n", "'many'", "int")),
        ({"listen.port": 70000}, ("listen.port", "70000", "65535")),
        ({"defaults.temperature": "nan"}, ("defaults.temperature", "nan")),
        ({"log.durability": "maybe"}, ("log.durability", "'maybe'")),
        ({"limits.loop_stall_s": 0.2}, ("limits.loop_stall_s", "0.2", ">= 1")),  # the loop calls four times a second
        ({"limits.loop_stall_s": "1e10"}, ("limits.loop_stall_s", "1e10", "<= 1000000")),  # more than the timer takes
        ({"limits.max_m": 1}, ("limits.max_m", "max_n")),
        ({"limit.max_n": 1}, ("'limit'", "limits")),
        ({"limits.max_n": 600}, ("limits.max_n = 600", "512")),
        ({"defaults.n": 200}, ("defaults.n = 200", "128")),
        ({"reward.models": ["r"], "reward.combine": "min"}, ("reward.combine = 'min'", "only one")),
        ({"reward.models": ["r"], "reward.weights": {"r": 2.0}}, ("reward.weights = {'r': 2.0}", "only one")),
        ({"reward.models": ["r"], "reward.std_factor": 2.0}, ("reward.std_factor = 2.0", "only one")),
    ],
)
def test_bad_values_are_named(flags: dict[str, object], named: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {}, flags)
    assert all(part in str(caught.value) for part in named), str(caught.value)


def test_a_variable_whose_section_is_misspelt_is_refused() -> None:
    """Others may begin with BON_ too: keys of clients, what a cluster sets for a service called bon."""
    with pytest.raises(ConfigError, match=r"BON_LIMIT_MAX_N in the environment: unknown section 'limit'.*'limits'"):
        load(None, {"BON_LIMIT_MAX_N": "20"})
    others = {"BON_API_KEY": "k", "BON_SERVICE_HOST": "h", "BON_PORT_50051_TCP": "p", "BON_TLS_CA": "c"}
    assert load(None, others) == Config()


@pytest.mark.parametrize("text", ["[limits\n", "limits = 3\n", "\xff"])
def test_bad_files_are_refused_by_name(file: Path, text: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"bon\.toml"):
        load(file, {})


def test_a_missing_file_is_refused_by_name(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"bon\.toml"):
        load(file, {})


def test_assignments() -> None:
    assert parse_assignments(["limits.max_n=64", "policy.model=a=b"]) == {"limits.max_n": "64", "policy.model": "a=b"}
    for bad in ("limits.max_n", "max_n=3", "a.b.c=1"):
        with pytest.raises(ConfigError, match=bad):
            parse_assignments([bad])


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("synthetic:tokens", "'tokens'"),
        ("synthetic:speed=3", "tokens_per_s"),
        ("synthetic:fail_rate=2", "<= 1"),
        ("synthetic:tokens=few", "int"),
    ],
)
def test_bad_model_options_are_named(spec: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SyntheticPolicy.from_spec(spec)
    assert spec in str(caught.value) and named in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "name", "spec"),
    [
        ("org/model", "default", "org/model"),
        ("helpful=org/model", "helpful", "org/model"),
        ("synthetic:seconds=1", "default", "synthetic:seconds=1"),
        ("slow=synthetic:seconds=1", "slow", "synthetic:seconds=1"),
        ("/models/a=b", "default", "/models/a=b"),
    ],
)
def test_reward_models_can_be_named(entry: str, name: str, spec: str) -> None:
    assert split_name(entry) == (name, spec)
