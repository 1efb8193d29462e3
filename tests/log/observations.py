"""Feedback to test with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from bon_server.log.feedback import Feedback


def observation(feedback_id: str = "f", request_id: str = "r", **fields: Any) -> Feedback:
    """An observation of an answer; `fields` replace any of its fields."""
    defaults: dict[str, Any] = {
        "attempt": 1,
        "candidate_index": None,
        "name": "thumbs_up",
        "value": True,
        "created_at": datetime(2026, 11, 22, 13, tzinfo=UTC),
    }
    return Feedback(feedback_id=feedback_id, request_id=request_id, **(defaults | fields))
