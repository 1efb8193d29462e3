"""The file of API keys: what it holds, what it refuses, and how the command changes it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from bon_server.core.errors import ConfigError, NotAuthenticated
from bon_server.serving.auth.access import bearer
from bon_server.serving.auth.keys import Quota, Right, add_key, read_keys, revoke
from tests.command import run_bon

SHA = "0" * 64


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_a_key_is_shown_once_and_only_its_digest_kept(file: Path) -> None:
    key = add_key(file, "anna", ["generate", "score"], Quota(tokens_per_minute=5))
    name, _, secret = key.partition(".")
    assert name == "anna" and len(secret) == 43, "256 bits"
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = read_keys(file).holder(key)
    assert (found.name, found.rights) == ("anna", (Right.GENERATE, Right.SCORE))
    assert found.quota == Quota(None, 5)
    assert add_key(file, "anna", ["score"], Quota()) != key


@pytest.mark.parametrize("presented", ["", ".", "anna", "anna.", "bob.x", "\ud800", "x" * 10_000])
def test_wrong_keys(file: Path, presented: str) -> None:
    add_key(file, "anna", ["score"], Quota())
    with pytest.raises(NotAuthenticated) as caught:
        read_keys(file).holder(presented)
    assert presented not in str(caught.value) or len(presented) < 2


def test_a_second_key_of_a_name_shares_its_quota(file: Path) -> None:
    add_key(file, "anna", ["generate"], Quota(10, None))
    add_key(file, "anna", ["feedback"], Quota())
    assert read_keys(file).quota("anna") == Quota(10, None)
    with pytest.raises(ConfigError, match="quota"):
        add_key(file, "anna", ["feedback"], Quota(11, None))


def test_revoking_leaves_what_people_wrote(file: Path) -> None:
    for name in ("anna", "bob", "anna"):
        add_key(file, name, ["generate"], Quota())
    file.write_text(file.read_text().replace('name = "bob"', 'name = "bob"  # of the search team'))
    file.chmod(0o640)
    assert revoke(file, "anna") == 2
    assert list(read_keys(file).by_name) == ["bob"]
    assert "# of the search team" in file.read_text() and file.read_text().startswith("# API keys")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640, "whoever could read it still can"
    assert revoke(file, "anna") == 0


def test_a_file_in_another_style_is_not_spoilt(file: Path) -> None:
    text = f'key = [{{name = "anna", sha256 = "{SHA}", rights = ["score"]}}]\n'
    file.write_text(text)
    assert list(read_keys(file).by_name) == ["anna"]
    with pytest.raises(ConfigError, match="by hand"):
        revoke(file, "anna")
    with pytest.raises(ConfigError, match="TOML"):
        add_key(file, "bob", ["score"], Quota())
    assert file.read_text() == text


ENTRY = {"name": "anna", "sha256": SHA, "rights": ["score"]}
BAD: dict[str, tuple[dict[str, object], str]] = {
    "no name": ({"name": None}, "name"),
    "a name that is none": ({"name": "a b"}, "'a b'"),
    "an empty name": ({"name": ""}, "''"),
    "a name of the log's": ({"name": "import"}, "import"),
    "a key instead of its digest": ({"sha256": "anna.secret"}, "sha256"),
    "an unknown right": ({"rights": ["everything"]}, "everything"),
    "no right": ({"rights": []}, "generate, score"),
    "a quota of nothing": ({"tokens_per_minute": 0}, "tokens_per_minute"),
    "a misspelt quota": ({"token_per_minute": 10}, "token_per_minute"),
}


@pytest.mark.parametrize(("changed", "named"), BAD.values(), ids=BAD.keys())
def test_bad_entries_are_named(file: Path, changed: dict[str, object], named: str) -> None:
    good, bad = ENTRY | {"name": "bob"}, {k: v for k, v in (ENTRY | changed).items() if v is not None}
    lines = [f"[[key]]\n{''.join(f'{k} = {json.dumps(v)}{chr(10)}' for k, v in each.items())}" for each in (good, bad)]
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="entry 2") as caught:
        read_keys(file)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_other_contents_are_refused(file: Path) -> None:
    for text in ("x = 1", "[key]\nname = 'a'", "[[keys]]\nname = 'a'", "key = 3"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"keys\.toml"):
            read_keys(file)
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_keys(file)


@pytest.mark.parametrize("given", [[], ["k"], ["Bearer"], ["Bearer "], ["Basic k"], ["Bearer k", "Bearer k"]])
def test_headers_without_a_key(given: list[str]) -> None:
    with pytest.raises(NotAuthenticated, match="authorization"):
        bearer(given)


def test_headers_with_one() -> None:
    assert bearer(["Bearer k"]) == bearer(["bearer k "]) == "k"


def test_the_commands(file: Path) -> None:
    def run(*words: str) -> str:
        done = run_bon("keys", *words, "--file", str(file))
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    def refused(*words: str) -> str:
        done = run_bon("keys", *words, "--file", str(file))
        assert done.exit_code == 2 and isinstance(done.exception, ConfigError)
        return done.stderr

    key = run("new", "anna", "--rights", "generate, feedback", "--candidates-per-minute", "100")
    assert read_keys(file).holder(key).rights == (Right.GENERATE, Right.FEEDBACK)
    assert json.loads(run("list", "--json")) == {"anna": "generate feedback"}
    assert json.loads(run("revoke", "anna", "--json")) == {"revoked": 1}
    assert "anna" in refused("revoke", "anna")
    assert "'all'" in refused("new", "bob", "--rights", "all")
    assert "generate, score" in refused("new", "bob", "--rights", "")
