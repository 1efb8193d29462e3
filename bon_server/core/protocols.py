"""What the algorithm needs of a policy and of a reward model."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol

from bon_server.core.types import Completion, EncodedPrompt, Milestone, ModelRef, PolicyRef, Prompt, Sampling, Score


class Policy(Protocol):
    """A language model that is sampled."""

    @property
    def ref(self) -> PolicyRef:
        """Which model this is."""

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""

    @property
    def slots(self) -> int:
        """Samples that run at once; more wait their turn."""

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Tokenises off the event loop. Raises `InvalidRequest` for what cannot be a prompt here."""

    async def check(self, sampling: Sampling) -> None:
        """Raises `UnsupportedOption` or `InvalidRequest` for parameters that this policy must not be given."""

    def sample(
        self, key: str, prompt_token_ids: Sequence[int], sampling: Sampling, milestone: Milestone | None = None
    ) -> Awaitable[Completion]:
        """One sample. `key` is unique; `sampling.seed` is this candidate's own; a `milestone` is told when passed.

        Returns early with finish reason CANCELLED and the partial text after `abort(key)`; cancelling the task frees
        the engine as well. Raises `SamplingFailed` when this sample failed and `Unavailable` when the engine is dead.
        """

    async def abort(self, keys: Sequence[str]) -> None:
        """Ends the samples with these keys; unknown keys are ignored."""


class RewardModel(Protocol):
    """A model or function that scores completions."""

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        """Which models score, in order."""

    def score(self, prompt: Prompt, completion: str, context: Mapping[str, str]) -> Awaitable[Score]:
        """The reward of one completion. `prompt` is text or messages, never token ids.

        What concerns this completion alone (too long, not finite, its reward function raised) is a `Score` with that
        status; a failure of the model itself raises `RewardFailed`, and `Unavailable` when its engine is dead.
        """
