"""Client of the BoN server: best-of-N answers over gRPC. Needs grpcio and protobuf, nothing else.

    import bon

    with bon.Client("127.0.0.1:50051") as client:
        answer = client.generate("What is 17 + 25?", n=8)
        print(bon.visible(answer.best.text, lines=True))  # a model's text may hold terminal escapes

Answers are the messages of `bon.v1.bon_pb2` themselves; `bon/v1/bon_pb2.pyi` documents every field.
"""

from bon.aio import AsyncClient
from bon.channel import CLIENT_TIMEOUT
from bon.client import Client
from bon.errors import Violation, describe, pushback_s, violations
from bon.requests import (
    GenerateOptions,
    Prompt,
    ScoreOptions,
    Text,
    Tokens,
    feedback_request,
    generate_request,
    score_request,
)
from bon.security import Security, SecurityError
from bon.visible import visible, visible_json

__version__ = "0.1.0"

__all__ = [
    "CLIENT_TIMEOUT",
    "AsyncClient",
    "Client",
    "GenerateOptions",
    "Prompt",
    "ScoreOptions",
    "Security",
    "SecurityError",
    "Text",
    "Tokens",
    "Violation",
    "describe",
    "feedback_request",
    "generate_request",
    "pushback_s",
    "score_request",
    "violations",
    "visible",
    "visible_json",
]
