"""Log-probabilities are what they were without the ranks that are left out."""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch

pytestmark = [pytest.mark.models, pytest.mark.slow]


def test_log_probabilities_come_without_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bon_server.models.vllm.engine_process import leave_out_token_ranks

        sampler = importlib.import_module("vllm.v1.sample.sampler")

    monkeypatch.setattr(sampler, "batched_count_greater_than", None)  # put back at the end
    leave_out_token_ranks()
    logprobs = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    tokens = torch.tensor([4, 0, 49])
    told = sampler.Sampler.gather_logprobs(logprobs, 0, tokens)
    assert told.logprob_token_ids.tolist() == [[4], [0], [49]]
    assert told.logprobs[:, 0].tolist() == [float(logprobs[row, token]) for row, token in enumerate(tokens)]
    assert told.selected_token_ranks.tolist() == [0, 0, 0]
