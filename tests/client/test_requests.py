"""Friendly arguments become the right message; a wrong form is refused before anything is sent."""

from __future__ import annotations

from typing import Any, cast

import bon
import pytest
from bon.v1 import bon_pb2 as pb


def test_plain_string_is_one_user_message() -> None:
    request = bon.generate_request("hello")
    assert [(m.role, m.content) for m in request.chat.messages] == [("user", "hello")]


def test_other_prompt_forms() -> None:
    conversation = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert [m.role for m in bon.generate_request(conversation).chat.messages] == ["system", "user"]
    assert bon.generate_request(bon.Text("hello")).text == "hello"
    assert list(bon.generate_request(bon.Tokens([3, 4])).tokens.ids) == [3, 4]


@pytest.mark.parametrize(("prompt", "form"), [([], "chat"), (bon.Tokens([]), "tokens"), (bon.Text(""), "text")])
def test_empty_prompts_reach_the_server_which_says_what_is_wrong(prompt: bon.Prompt, form: str) -> None:
    assert bon.generate_request(prompt).WhichOneof("prompt") == form


def test_unset_options_leave_no_trace() -> None:
    request = bon.generate_request("hello", n=None, temperature=None, stop=None)
    assert {field.name for field, _ in request.ListFields()} == {"request_id", "chat"}


def test_zero_is_not_unset() -> None:
    request = bon.generate_request("hello", n=0, temperature=0.0, seed=0)
    assert request.HasField("n")
    assert request.sampling.HasField("temperature")
    assert request.sampling.HasField("seed")


def test_every_option_reaches_its_field() -> None:
    request = bon.generate_request(
        "hello",
        request_id="r1",
        n=4,
        view="all",
        include_token_ids=True,
        top_p=0.9,
        min_p=0.01,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        top_k=5,
        max_tokens=7,
        seed=-1,
        stop=["\n"],
        stop_token_ids=[2],
        regex="a+",
        rule="soft",
        selection_temperature=0.5,
        selection_seed=9,
        stop_at_reward=1.5,
        price_per_candidate=0.25,
        min_n=2,
        prune_fraction=0.5,
        prune_after_tokens=16,
        reward_context={"answer": "42"},
        tags={"team": "a"},
        log_policy="metadata_only",
    )
    assert request == pb.GenerateRequest(
        request_id="r1",
        chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="hello")]),
        n=4,
        view=pb.CANDIDATE_VIEW_ALL,
        include_token_ids=True,
        sampling=pb.SamplingParams(
            top_p=0.9,
            min_p=0.01,
            presence_penalty=0.1,
            frequency_penalty=0.2,
            repetition_penalty=1.1,
            top_k=5,
            max_tokens=7,
            seed=-1,
            stop=["\n"],
            stop_token_ids=[2],
            regex="a+",
        ),
        selection=pb.Selection(rule=pb.SELECTION_RULE_SOFT, temperature=0.5, seed=9),
        budget=pb.Budget(
            stop_at_reward=1.5, price_per_candidate=0.25, min_n=2, prune_fraction=0.5, prune_after_tokens=16
        ),
        reward_context={"answer": "42"},
        tags={"team": "a"},
        log_policy=pb.LOG_POLICY_METADATA_ONLY,
    )


def test_options_cover_the_whole_request() -> None:
    """A field added to the proto has to be reachable."""
    groups = {"sampling": pb.SamplingParams, "selection": pb.Selection, "budget": pb.Budget}
    names = {f.name for f in pb.GenerateRequest.DESCRIPTOR.fields} - groups.keys() - {"text", "chat", "tokens"}
    names |= {f.name for f in (*pb.SamplingParams.DESCRIPTOR.fields, *pb.Budget.DESCRIPTOR.fields)}
    names |= {"rule", "selection_temperature", "selection_seed"}
    assert bon.GenerateOptions.__annotations__.keys() == names


def test_fresh_ids_differ() -> None:
    assert bon.generate_request("hello").request_id != bon.generate_request("hello").request_id


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"temprature": 1.0}, TypeError, "temprature"),
        ({"view": "best"}, ValueError, "view is 'best'; allowed: winner, all"),
        ({"rule": "max"}, ValueError, "rule is 'max'; allowed: argmax, soft"),
        ({"log_policy": "some"}, ValueError, "log_policy is 'some'"),
        ({"stop": "ab"}, TypeError, "stop is a string"),
        ({"regex": "a", "json_schema": "{}"}, ValueError, "at most one of"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        bon.generate_request("hello", **cast(Any, options))


def test_one_completion_is_not_a_list_of_its_characters() -> None:
    with pytest.raises(TypeError, match="completions is a string"):
        bon.score_request("hello", "42")


def test_a_message_without_a_role_is_refused() -> None:
    with pytest.raises(ValueError, match="role and content"):
        bon.generate_request([{"content": "hello"}])


@pytest.mark.parametrize(
    ("value", "field"), [(True, "bool_value"), (1, "double_value"), (0.5, "double_value"), ("x", "string_value")]
)
def test_feedback_values_keep_their_type(value: bool | float | str, field: str) -> None:
    assert bon.feedback_request("r", "rating", value).WhichOneof("value") == field
