"""The gRPC service: bytes in, bytes out. Only this folder knows protobuf and status codes.

Messages are parsed by the handlers and not by gRPC, because gRPC answers malformed bytes with UNKNOWN.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import grpc
from bon.v1 import bon_pb2 as pb
from google.protobuf.message import Message

from bon_server import __version__
from bon_server.config.settings import Config
from bon_server.core.best_of_n import RewardModel
from bon_server.core.errors import QuotaExceeded, ReaderStalled, RequestCancelled
from bon_server.core.types import Candidate, Request
from bon_server.serving.admission.deadlines import surely_left_s
from bon_server.serving.attempt import Attempts, Finished
from bon_server.serving.auth import access
from bon_server.serving.auth.access import principal
from bon_server.serving.policies import Policies
from bon_server.serving.rpc import parse, respond
from bon_server.serving.rpc.builtin import Handlers
from bon_server.serving.rpc.feedback import FeedbackDesk
from bon_server.serving.status import Metadata, to_status
from bon_server.serving.telemetry import log_lines
from bon_server.serving.telemetry.metrics import Metrics

SERVICE = "bon.v1.BestOfNService"

Context = grpc.aio.ServicerContext[bytes, bytes]


class Service:
    """Handlers of the five RPCs."""

    def __init__(
        self,
        config: Config,
        policies: Policies,
        reward_model: RewardModel,
        attempts: Attempts,
        metrics: Metrics,
        feedback: FeedbackDesk,
    ) -> None:
        self._config = config
        self._policies = policies
        self._reward_model = reward_model
        self._attempts = attempts
        self._metrics = metrics
        self._feedback = feedback
        self.running = 0
        """Calls whose handler has not ended."""

    def handlers(self) -> Handlers:
        """By the names of the methods."""
        unary = {
            "Generate": self._generate,
            "Score": self._score,
            "RecordFeedback": self._record_feedback,
            "GetServerInfo": self._get_server_info,
        }
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(name, each)) for name, each in unary.items()
        }
        methods["GenerateStream"] = grpc.unary_stream_rpc_method_handler(self._generate_stream)
        return methods

    def _unary(
        self, method: str, answer: Callable[[bytes, Context], Awaitable[Message]]
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(data: bytes, context: Context) -> bytes:
            self.running += 1
            self._metrics.started(method)
            began = time.monotonic()
            code = grpc.StatusCode.CANCELLED
            try:
                response = await answer(data, context)
                code = grpc.StatusCode.OK
                return response.SerializeToString()
            except (Exception, asyncio.CancelledError) as error:
                if _caller_left(error):
                    raise
                code, message, trailing = _status(error, method, context)
                data = _forgotten(error)
                await context.abort(code, message, trailing)
            finally:
                self.running -= 1
                self._metrics.ended(method, code.name, time.monotonic() - began)

        return handle

    async def _generate(self, data: bytes, context: Context) -> pb.GenerateResponse:
        message = parse.parse(pb.GenerateRequest, data)
        request = await self._to_generate(message, context)
        finished = await self._attempts.run(request, _caller(context), self._deadline_s(context))
        return self._response(message, finished)

    async def _generate_stream(self, data: bytes, context: Context) -> None:
        self.running += 1
        self._metrics.started("GenerateStream")
        began = time.monotonic()
        code = grpc.StatusCode.CANCELLED
        try:
            await self._send_events(data, context)
            code = grpc.StatusCode.OK
        except (ReaderStalled, RequestCancelled) as error:
            # Set and not aborted, which would wait for the reader as well.
            code, text, _ = to_status(error, "GenerateStream")
            context.set_code(code)
            context.set_details(text)
        except (Exception, asyncio.CancelledError) as error:
            if _caller_left(error):
                raise
            code, text, trailing = _status(error, "GenerateStream", context)
            data = _forgotten(error)
            await context.abort(code, text, trailing)
        finally:
            self.running -= 1
            self._metrics.ended("GenerateStream", code.name, time.monotonic() - began)

    async def _send_events(self, data: bytes, context: Context) -> None:
        message = parse.parse(pb.GenerateStreamRequest, data).request
        request = await self._to_generate(message, context)
        async with aclosing(self._events(message, request, context)) as events:
            async for event in events:
                await self._send(event.SerializeToString(), context)

    async def _send(self, event: bytes, context: Context) -> None:
        """Returns once gRPC has taken it, which it does as the reader reads."""
        patience_s = self._config.limits.slow_reader_s
        try:
            async with asyncio.timeout(patience_s):
                await context.write(event)
        except TimeoutError:
            raise ReaderStalled(f"nothing was read from the stream for {patience_s:g} s") from None
        except grpc.aio.InternalError:
            # gRPC says so when the caller left while a message was on its way; the cancellation comes a moment later.
            raise RequestCancelled("the caller left in the middle of a message") from None

    async def _events(
        self, message: pb.GenerateRequest, request: Request, context: Context
    ) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
        """Candidates as they end, then the answer. A slow reader holds at most n candidates, and for a limited time.

        The attempt does not wait for readers: it gives back its permit and the engine as if there were none.
        """
        ended: asyncio.Queue[Candidate | None] = asyncio.Queue()
        running = asyncio.create_task(
            self._attempts.run(request, _caller(context), self._deadline_s(context), ended.put_nowait)
        )
        running.add_done_callback(lambda _: ended.put_nowait(None))
        best: tuple[float, int] | None = None
        try:
            while (candidate := await ended.get()) is not None:
                shown = respond.to_candidate(candidate, message.include_token_ids)
                yield pb.GenerateStreamResponse(candidate=shown)
                if candidate.reward is None:
                    continue
                if best is None or (candidate.reward, -candidate.index) > best:
                    best = (candidate.reward, -candidate.index)
                    yield pb.GenerateStreamResponse(best_so_far=shown)
            yield pb.GenerateStreamResponse(final=self._response(message, await running))
        finally:
            running.cancel()  # a failure that came too late to be sent counts as seen then

    async def _score(self, data: bytes, context: Context) -> pb.ScoreResponse:
        message = parse.parse(pb.ScoreRequest, data)
        config, caller = self._config, _caller(context)
        self._attempts.check_room(principal(), message.request_id, caller, len(message.completions), samples=False)
        with self._policies.use(asyncio.get_running_loop().create_future()) as policy:  # as in `_to_generate`
            request = await parse.to_score(message, principal(), policy, config.limits, config.log)
        log_lines.about(request.request_id)
        finished = await self._attempts.run(request, caller, self._deadline_s(context))
        return respond.score_response(finished, self._config.log.durability)

    async def _record_feedback(self, data: bytes, context: Context) -> pb.RecordFeedbackResponse:
        message = parse.parse(pb.RecordFeedbackRequest, data)
        return await self._feedback.record(message, principal())

    async def _get_server_info(self, data: bytes, context: Context) -> pb.GetServerInfoResponse:
        parse.parse(pb.GetServerInfoRequest, data)
        limits, defaults, policy = self._config.limits, self._config.defaults, self._policies.current
        return pb.GetServerInfoResponse(
            version=__version__,
            policy=respond.policy_model(policy.ref),
            reward_models=[respond.to_model(ref) for ref in self._reward_model.refs],
            limits=pb.Limits(
                max_n=limits.max_n,
                max_prompt_tokens=limits.max_prompt_tokens or policy.max_model_len - 1,
                max_context_tokens=policy.max_model_len,
                max_message_bytes=limits.max_message_bytes,
                max_candidates_in_flight=limits.max_candidates_in_flight,
                max_candidates_queued=limits.max_candidates_queued,
            ),
            durability=respond.DURABILITY[self._config.log.durability],
            default_n=defaults.n,
            default_sampling=pb.SamplingParams(
                temperature=defaults.temperature, top_p=defaults.top_p, max_tokens=defaults.max_tokens
            ),
        )

    async def _to_generate(self, message: pb.GenerateRequest, context: Context) -> Request:
        """A full server refuses before it looks at prompt and parameters."""
        config = self._config
        n = message.n or config.defaults.n
        self._attempts.check_room(principal(), message.request_id, _caller(context), n, samples=True)
        # Any of them: all have one tokenizer and one context. But it must not be closed meanwhile.
        with self._policies.use(asyncio.get_running_loop().create_future()) as policy:
            request = await parse.to_generate(message, principal(), policy, config.limits, config.defaults, config.log)
        log_lines.about(request.request_id)
        return request

    def _response(self, message: pb.GenerateRequest, finished: Finished) -> pb.GenerateResponse:
        return respond.generate_response(finished, message.view, message.include_token_ids, self._config.log.durability)

    def _deadline_s(self, context: Context) -> float:
        """Seconds left to the call."""
        remaining: float | None = context.time_remaining()  # the stubs do not know that it may be None
        return self._config.limits.default_deadline_s if remaining is None else surely_left_s(remaining)


def _caller(context: Context) -> str:
    """Whose requests share turns: those of one principal and, without keys, those of one connection.

    Not of one address: programs on one machine would not be told apart, nor would all callers behind one proxy.
    """
    return principal() or context.peer()


def _status(error: BaseException, method: str, context: Context) -> tuple[grpc.StatusCode, str, Metadata]:
    """As `to_status`; a refusal for who calls is audited."""
    code, message, trailing = to_status(error, method)
    if isinstance(error, QuotaExceeded):
        access.log_refusal(principal(), f"/{SERVICE}/{method}", code, message, context.peer())
    return code, message, trailing


def _forgotten(error: BaseException) -> bytes:
    """Lets go of the frames that `error` came through; nothing, to put in the place of the message.

    gRPC keeps its own error, which `abort` raises, in a cycle, and with it this one and the frame of the handler: all
    that was sent would stay in memory until the garbage collector looks, 4 MiB of each of 400 refused calls.
    """
    error.__traceback__ = None
    error.__context__ = error.__cause__ = None  # protobuf's error, for one, came through the frame that parsed
    return b""


def _caller_left(error: BaseException) -> bool:
    """Whether this call was cancelled; a model that cancelled itself is a bug, and its caller would hang."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
