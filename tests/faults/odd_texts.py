"""Odd input that is good: every text as it is, in the answer, in the spool and in Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
from bon.v1 import bon_pb2 as pb

from bon_server.core.types import Completion
from bon_server.log.seal.sealing import seal
from tests.fakes import says
from tests.faults.case import OK, Case, Check
from tests.faults.place import Kind, Place, Seen, see

TEXTS = {
    "NUL in a prompt": "a\0b\0",
    "right-to-left text": "\u202eשלום עולם\u202c مرحبا",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈 \U0001f600",
    "combining marks": "e\u0301 \u0065\u0301\u0302 \u00e9 ﷺ",
    "line ends of all kinds": "a\r\nb\rc\u2028d\u0085e",
    "byte order mark": "\ufeffa",
    "last code points": "\U0010ffff\ufffe\uffff",
    "quotes and markup": "\"'`\\ {} %s $x <b>&amp;",
    "spaces around": "  \t leading and trailing \n\n",
}
TEXT_KIND = Kind()


@dataclass(frozen=True)
class Echo:
    """Asks with the text in every place that takes one; the policy answers with it."""

    text: str
    chat: bool

    async def __call__(self, place: Place) -> Seen:
        async def echo(index: int) -> Completion:
            return says(self.text)

        place.policy.script = echo
        prompt: dict[str, Any] = {"text": self.text}
        if self.chat:
            prompt = {"chat": pb.Chat(messages=[pb.ChatMessage(role="user", content=self.text)])}
        return await see(
            place.generate(reward_context={self.text: self.text}, tags={self.text[:4]: self.text}, **prompt)
        )

    def exact(self, place: Place, seen: Seen) -> None:
        """In the answer, in the spool, and in the segment that the spool is sealed into."""
        row, text = place.row(), self.text
        logged = row.prompt_messages[0].content if row.prompt_messages else row.prompt_text
        assert [seen.answer.best.text, row.candidates[0].text, logged] == [text] * 3
        assert (row.reward_context, row.tags) == ({text: text}, {text[:4]: text})
        seal(place.server.spool, 1 << 26, 86_400.0)
        sealed = max(place.log.glob("segments/*/*/*.parquet"), key=lambda path: path.name)
        (found,) = (one for one in pq.ParquetFile(sealed).read().to_pylist() if one["request_id"] == place.request_id)
        logged = found["prompt_messages"][0]["content"] if self.chat else found["prompt_text"]
        assert [logged.encode(), found["candidates"][0]["text"].encode()] == [text.encode()] * 2


def _cases() -> Iterator[Case]:
    for name, text in TEXTS.items():
        for chat in (False, True):
            echo = Echo(text, chat)
            yield Case(
                name=name,
                variant="chat" if chat else "text",
                happens=echo,
                ends=OK,
                checks=(Check("byte-exact in answer, log and Parquet", echo.exact),),
                kind=TEXT_KIND,
            )


CASES = list(_cases())
