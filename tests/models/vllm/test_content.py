"""What vLLM says when a step or a candidate fails."""

from __future__ import annotations

import importlib
import inspect
import logging
import warnings
from collections.abc import Iterator

import pytest

pytestmark = [pytest.mark.models, pytest.mark.slow]

CANARY = "canary"


@pytest.fixture
def written() -> Iterator[list[str]]:
    """What vLLM's loggers pass on, which they do not to the root. Its filters are taken away again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bon_server.models.vllm import engine_process

        importlib.import_module("vllm.v1.core.sched.scheduler")
    written: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("vllm").addHandler(handler)
    yield written
    logging.getLogger("vllm").removeHandler(handler)
    for name in engine_process.WITH_CONTENT:
        logging.getLogger(name).filters.clear()


def fail_in_a_step() -> None:
    """As the engine does when the model's forward pass raises."""
    from vllm.logging_utils.dump_input import dump_engine_exception
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams
    from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput

    sampling = SamplingParams(stop=[CANARY], structured_outputs=StructuredOutputsParams(grammar=CANARY))
    step = SchedulerOutput.make_empty()
    step.scheduled_new_reqs.append(NewRequestData("r", [1], [], sampling, None, ([1],), 0, None))
    dump_engine_exception({}, step, None)


def test_a_step_that_fails_repeats_no_constraint(written: list[str]) -> None:
    from bon_server.models.vllm.engine_process import keep_content_out_of_the_log

    fail_in_a_step()
    assert any(CANARY in message for message in written), "else there is nothing to keep out any more"
    written.clear()
    keep_content_out_of_the_log()
    fail_in_a_step()
    assert written
    assert not any(CANARY in message for message in written)


def test_nor_does_a_candidate_that_fails_on_its_grammar(written: list[str]) -> None:
    from vllm.v1.core.sched import scheduler

    from bon_server.models.vllm.engine_process import keep_content_out_of_the_log

    assert "grammar rejected tokens" in inspect.getsource(scheduler)
    keep_content_out_of_the_log()
    scheduler.logger.error("Unexpected: grammar rejected tokens %s", CANARY)
    scheduler.logger.error("another")
    assert written == ["another"]
