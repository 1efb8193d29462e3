"""A client in any language: nothing but reflection and protobuf, no stub of this project."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.conftest import StartServer

SERVICE = "bon.v1.BestOfNService"


def _call(address: str, method_name: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """JSON in, JSON out: one answer, or as many as the stream has."""
    with grpc.insecure_channel(address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        method = pool.FindServiceByName(SERVICE).methods_by_name[method_name]
        message = json_format.ParseDict(request, GetMessageClass(method.input_type)())
        # On the wire a unary call is a stream of one.
        answers = channel.unary_stream(
            f"/{SERVICE}/{method_name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )(message, timeout=10)
        return [json_format.MessageToDict(answer, preserving_proto_field_name=True) for answer in answers]


async def test_services_are_listed(start_server: StartServer) -> None:
    server = await start_server()

    def services() -> set[str]:
        with grpc.insecure_channel(server.address) as channel:
            return set(ProtoReflectionDescriptorDatabase(channel).get_services())

    assert {SERVICE, "grpc.health.v1.Health"} <= await asyncio.to_thread(services)


async def test_generate(start_server: StartServer) -> None:
    server = await start_server()
    request = {"text": "hello", "n": 4, "view": "CANDIDATE_VIEW_ALL", "sampling": {"max_tokens": 8}}
    (answer,) = await asyncio.to_thread(_call, server.address, "Generate", request)
    rewards = [candidate["reward"] for candidate in answer["candidates"]]
    assert len(rewards) == answer["n_scored"] == 4
    assert answer["best"]["reward"] == max(rewards)
    assert answer["selection_reason"] == "SELECTION_REASON_ARGMAX"


async def test_generate_stream(start_server: StartServer) -> None:
    server = await start_server()
    request = {"request": {"chat": {"messages": [{"role": "user", "content": "hello"}]}, "n": 3}}
    events = await asyncio.to_thread(_call, server.address, "GenerateStream", request)
    kinds = [next(iter(event)) for event in events]
    assert kinds.count("candidate") == 3
    assert kinds[-1] == "final"


async def test_server_info(start_server: StartServer) -> None:
    server = await start_server()
    (info,) = await asyncio.to_thread(_call, server.address, "GetServerInfo", {})
    assert info["limits"]["max_n"] >= 1
