"""Bad input: constraints, ids, tags, selection, budget, enums."""

from __future__ import annotations

import math

from bon.v1 import bon_pb2 as pb

from tests.faults.place import CANARY
from tests.faults.sending import ask, bad, choices, sampling, score, unsupported

SCHEMA, REGEX, CHOICES = "sampling.json_schema", "sampling.regex", "sampling.choice.choices"
NAN, INFINITY = math.nan, math.inf
NESTED = '{"items":' * 40 + "{}" + "}" * 40
WIDE = '{"enum": [' + "0, " * 5000 + "0]}"
PRICE, PRUNING = "budget.price_per_candidate", "budget.prune_after_tokens"

CONSTRAINTS = [
    bad("bad JSON schema", sampling(json_schema=f'{{"type": "{CANARY}"'), SCHEMA, "not JSON", "character 22"),
    bad("empty JSON schema", sampling(json_schema=""), SCHEMA, "not JSON", "character 0"),
    bad("JSON schema that is a list", sampling(json_schema=f'["{CANARY}"]'), SCHEMA, "a JSON list", "an object"),
    bad("JSON schema that is `true`", sampling(json_schema="true"), SCHEMA, "a JSON value", "an object"),
    bad("JSON schema with NaN", sampling(json_schema='{"const": NaN}'), SCHEMA, "NaN", "no number of JSON's"),
    bad("JSON schema with an endless number", sampling(json_schema="9" * 5000), SCHEMA, "not JSON", "4300"),
    bad("JSON schema with a key twice", sampling(json_schema='{"a": 1, "a": 2}'), SCHEMA, "not JSON", "a key twice"),
    bad("deeply nested JSON schema", sampling(json_schema=NESTED), SCHEMA, "41 levels", "32"),
    bad("bottomless JSON schema", sampling(json_schema="[" * 60_000), SCHEMA, "far too deep", "32"),
    bad("exploding JSON schema", sampling(json_schema=WIDE), SCHEMA, "5003 values", "4096"),
    bad("long JSON schema", sampling(json_schema=f'{{"title": "{CANARY * 6000}"}}'), SCHEMA, "66013 bytes", "65536"),
    bad("empty regex", sampling(regex=""), REGEX, "0 bytes", "1 to 4096"),
    bad("long regex", sampling(regex=CANARY * 400), REGEX, "4400 bytes", "1 to 4096"),
    bad("regex with NUL", sampling(regex=f"{CANARY}\0"), REGEX, "a NUL", "not allowed"),
    bad("choice of nothing", sampling(choice=pb.Choice()), CHOICES, "0", "at least one"),
    bad("empty choice", choices("yes", ""), CHOICES, "an empty one", "at least one character"),
    bad("choice given twice", choices(CANARY, "no", CANARY), CHOICES, "one is given twice", "twice"),
    bad("too many choices", choices(*map(str, range(1025))), CHOICES, "1025", "1024"),
    bad("long choices", choices("x", CANARY * 6000), CHOICES, "66001 bytes", "65536"),
    unsupported("JSON schema where the backend has none", sampling(json_schema='{"type": "object"}'), SCHEMA),
    unsupported("cyclic JSON schema where the backend has none", sampling(json_schema='{"$ref": "#"}'), SCHEMA),
    unsupported("regex where the backend has none", sampling(regex="[0-9]+"), REGEX),
    unsupported("exploding regex where the backend has none", sampling(regex="(.{0,1000}){0,1000}x"), REGEX),
]

IDS = [
    bad("request_id of 4 KB", ask(request_id="x" * 4096), "request_id", "4096 characters", "1 to 128"),
    bad("request_id one too long", ask(request_id="x" * 129), "request_id", "129 characters", "1 to 128"),
    bad("request_id with a space", ask(request_id="a b"), "request_id", "'a b'", "A-Z a-z 0-9"),
    bad("request_id with NUL", ask(request_id="a\0"), "request_id", r"'a\x00'", "A-Z a-z 0-9"),
    bad("request_id with a line feed", ask(request_id="a\n"), "request_id", r"'a\n'", "A-Z a-z 0-9"),
    bad("request_id from right to left", ask(request_id="\u202ea"), "request_id", r"'\u202ea'", "A-Z a-z 0-9"),
    bad("request_id of Arabic digits", ask(request_id="٣"), "request_id", "٣", "A-Z a-z 0-9"),
    bad("Score with an odd request_id", score(request_id="ö"), "request_id", "'ö'", "A-Z a-z 0-9"),
    bad("too many tags", ask(tags={str(i): "" for i in range(17)}), "tags", "17", "16"),
    bad("empty tag", ask(tags={"": "v"}), "tags['']", "0 and", "1 to 64"),
    bad("too large a tag", ask(tags={"k" * 65: "v"}), f"tags['{'k' * 24}…']", "65", "1 to 64"),
    bad("too large a tag's value", ask(tags={"k": CANARY * 30}), "tags['k']", "330", "0 to 256"),
    bad("Score with too large a tag's value", score(tags={"k": "v" * 257}), "tags['k']", "257", "0 to 256"),
    bad("too large a reward_context", ask(reward_context={"k": CANARY * 6000}), "reward_context", "66001", "65536"),
    bad("too many in reward_context", ask(reward_context={str(i): "" for i in range(17)}), "reward_context", "17"),
]

CHOOSING = [
    bad("unknown rule", ask(selection={"rule": 9}), "selection.rule", "9", "0 to 2"),
    bad("negative rule", ask(selection={"rule": -1}), "selection.rule", "-1", "0 to 2"),
    bad("temperature for ARGMAX", ask(selection={"temperature": 1.0}), "selection.temperature", "given", "SOFT"),
    bad("seed for ARGMAX", ask(selection={"seed": 1}), "selection.seed", "given", "SOFT"),
    bad("SOFT without temperature", ask(selection={"rule": 2}), "selection.temperature", "missing", "SOFT"),
    bad("SOFT at 0", ask(selection={"rule": 2, "temperature": 0.0}), "selection.temperature", "0", "above 0"),
    bad("SOFT at NaN", ask(selection={"rule": 2, "temperature": NAN}), "selection.temperature", "nan", "above 0"),
    bad("stop_at_reward NaN", ask(budget={"stop_at_reward": NAN}), "budget.stop_at_reward", "nan", "finite"),
    bad("price infinite", ask(budget={"price_per_candidate": INFINITY}), PRICE, "inf", "finite"),
    bad("price negative", ask(budget={"price_per_candidate": -0.1}), PRICE, "-0.1", "at least"),
    bad("min_n without a price", ask(budget={"min_n": 2}), "budget.min_n", "given", "price_per_candidate"),
    bad("min_n = 0", ask(budget={"price_per_candidate": 1, "min_n": 0}), "budget.min_n", "0", "from 1 to"),
    bad("min_n above n", ask(n=4, budget={"price_per_candidate": 1, "min_n": 5}), "budget.min_n", "5", "1 to n = 4"),
    bad("pruning all", ask(budget={"prune_fraction": 1.0}), "budget.prune_fraction", "1.0", "between 0 and 1"),
    bad("pruning nobody knows when", ask(budget={"prune_fraction": 0.5}), PRUNING, "missing", "needs both"),
    bad("pruning nobody knows how many", ask(budget={"prune_after_tokens": 8}), "budget.prune_fraction", "missing"),
    bad("pruning at once", ask(budget={"prune_fraction": 0.5, "prune_after_tokens": 0}), PRUNING, "0", "at least 1"),
    bad("unknown view", ask(view=3), "view", "3", "0 to 2"),
    bad("unknown log_policy", ask(log_policy=4), "log_policy", "4", "0 to 3"),
]

CASES = [*CONSTRAINTS, *IDS, *CHOOSING]
