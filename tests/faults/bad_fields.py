"""Bad input: prompts, sizes and sampling parameters."""

from __future__ import annotations

import math
from dataclasses import replace

from bon.v1 import bon_pb2 as pb

from tests.faults.case import Check
from tests.faults.place import CANARY, PROMPT, Seen
from tests.faults.sending import MAX_N, ask, bad, chat, feedback, out_of_range, sampling, score

NAN, INFINITY = math.nan, math.inf
SEVERAL = sampling(temperature=-1.0, top_p=0.0, max_tokens=0)
SEVERAL.n, SEVERAL.request_id = 0, "ä"


def _all_named(seen: Seen) -> None:
    assert seen.refused is not None
    named = {"request_id", "n", "sampling.temperature", "sampling.top_p", "sampling.max_tokens"}
    assert seen.refused.violations.keys() == named


PROMPTS = [
    bad("no prompt", pb.GenerateRequest(n=1), "prompt", "none", "one of text, chat and tokens"),
    bad("empty prompt", ask(text=""), "text", "empty", "at least one character"),
    bad("chat with no message", chat(), "chat.messages", "0 messages", "at least one"),
    bad("chat without content", chat(("user", ""), ("user", "")), "chat.messages", "2 messages", "at least one"),
    bad("unknown role", chat(("robot", PROMPT)), "chat.messages[0].role", "'robot'", "system, user, assistant"),
    bad("no role", chat(("user", PROMPT), ("", PROMPT)), "chat.messages[1].role", "''", "system, user, assistant"),
    bad("endless chat", chat(*[("user", PROMPT)] * 5000), "chat.messages", "5000", "4096"),
    bad("no token", ask(tokens=pb.Tokens()), "tokens.ids", "empty", "at least one"),
    bad(
        "token ids outside the vocabulary", ask(tokens=pb.Tokens(ids=[1, 70_000])), "tokens.ids", "70000", "vocabulary"
    ),
    bad("token id 2³²−1", ask(tokens=pb.Tokens(ids=[2**32 - 1])), "tokens.ids", "4294967295", "vocabulary"),
    bad("prompt longer than the model: text", ask(text=CANARY * 4000), "text", str(len(CANARY) * 4000), "32767"),
    bad("prompt longer than the model: chat", chat(("user", CANARY * 4000)), "chat", "44007", "32767"),
    bad(
        "prompt longer than the model: tokens", ask(tokens=pb.Tokens(ids=[65] * 33_000)), "tokens.ids", "33000", "32768"
    ),
    bad(
        "prompt + max_tokens too long",
        ask(text="x" * 30_000, sampling=pb.SamplingParams(max_tokens=3000)),
        "sampling.max_tokens",
        "3000",
        "2768",
    ),
    bad("Score without a prompt", pb.ScoreRequest(completions=["x"]), "prompt", "none", "one of"),
    bad("Score of an empty prompt", score(text=""), "text", "empty", "at least one character"),
    bad("Score of tokens outside the vocabulary", score(tokens=pb.Tokens(ids=[99_999])), "tokens.ids", "99999"),
    bad("Score of nothing", score(completions=[]), "completions", "0", f"1 to {MAX_N}"),
    bad("Score of too many", score(completions=["x"] * 17), "completions", "17", f"1 to {MAX_N}"),
]

SAMPLING = [
    bad("n = 0", ask(n=0), "n", "0", f"1 to {MAX_N}"),
    bad("n = max + 1", ask(n=MAX_N + 1), "n", str(MAX_N + 1), f"1 to {MAX_N}"),
    bad("n = 2³²−1", ask(n=2**32 - 1), "n", "4294967295", f"1 to {MAX_N}"),
    bad("temperature 0 with n > 1", sampling(temperature=0.0), "sampling.temperature", "0", "n = 4"),
    *out_of_range("temperature", "0 to 2", NaN=NAN, infinite=INFINITY, negative=-0.1, just_too_high=2.0000001),
    *out_of_range("top_p", "above 0 to 1", zero=0.0, too_high=1.1, NaN=NAN, negative=-1.0),
    *out_of_range("min_p", "0 to 1", too_high=1.5, NaN=NAN, negative=-0.5),
    *out_of_range("presence_penalty", "-2 to 2", too_high=2.5, too_low=-2.5, NaN=NAN),
    *out_of_range("frequency_penalty", "-2 to 2", too_high=2.5, too_low=-2.5, infinite=-INFINITY),
    *out_of_range("repetition_penalty", "0.01 to 2", zero=0.0, negative=-1.0, too_high=2.5, NaN=NAN),
    *out_of_range("top_k", "-1 to 2147483647", too_low=-5, lowest=-(2**31)),
    *out_of_range("max_tokens", "1 to", zero=0),
    bad("max_tokens huge", sampling(max_tokens=2**32 - 1), "sampling.max_tokens", "4294967295", "leaves 32736"),
    bad("seed negative", sampling(seed=-1), "sampling.seed", "-1", "0 to"),
    bad("seed that leaves none for the candidates", sampling(seed=2**63 - 1), "sampling.seed", str(2**63 - 1), "0 to"),
    bad("empty stop string", sampling(stop=["ok", ""]), "sampling.stop[1]", "0 characters", "1 to 256"),
    bad("long stop string", sampling(stop=[CANARY * 40]), "sampling.stop[0]", "440 characters", "1 to 256"),
    bad("too many stop strings", sampling(stop=["x"] * 17), "sampling.stop", "17", "16"),
    bad("too many stop tokens", sampling(stop_token_ids=[1] * 65), "sampling.stop_token_ids", "65", "64"),
    replace(
        bad("several at once", SEVERAL, "sampling.top_p", "0.0", "above 0 to 1"),
        checks=(Check("every bad field is named", lambda place, seen: _all_named(seen)),),
    ),
]

FEEDBACK = [
    bad("feedback on no request", feedback(request_id=""), "request_id", "empty"),
    bad("feedback id with odd characters", feedback(feedback_id="\x1b[2J"), "feedback_id"),
    bad("feedback without a name", feedback(name=""), "name", "0 characters", "1 to 64"),
    bad("feedback with a long name", feedback(name="x" * 65), "name", "65 characters", "1 to 64"),
    bad("feedback without a value", pb.RecordFeedbackRequest(request_id="r", name="n"), "value", "none given"),
    bad("feedback NaN", feedback(double_value=NAN), "double_value", "nan is not finite"),
    bad("feedback infinite", feedback(double_value=-INFINITY), "double_value", "-inf is not finite"),
    bad("feedback with a long text", feedback(string_value="x" * 65_537), "string_value", "65537 characters"),
    bad("feedback with too many tags", feedback(tags={str(i): "" for i in range(65)}), "tags", "65"),
]

CASES = [*PROMPTS, *SAMPLING, *FEEDBACK]
