"""The policy's own answers: sampled with vLLM and kept in a file, and moved to other training problems.

File: JSON lines. The first line says how the samples were drawn; each further line is one problem's prompt and its
completions. A broken run goes on where it was, since sampling is the slow part of training and evaluation (about 150
tokens a second on two AVX2 cores).

Moved answers (`Moves`) are more numbers to learn from than were sampled. "17 + 41 = 58." (right) becomes "62 + 25 =
87." for the problem 62 + 25, and "17 + 41 = 60." (wrong by 2) becomes "62 + 25 = 89.": the wording, the verdict and the
size of the error are the policy's own, the numbers are new. Targets have the same form, task and digits, and come from
the training split alone; the verifier confirms every verdict.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from bon_server.demo.problems import Problem, is_right, last_number

if TYPE_CHECKING:
    from vllm import LLM


_DIGITS = re.compile(r"\d+")
_Form = tuple[str, str, bool]
_EXPRESSION = re.compile(r"problem: (.*) =$|^Calculate (.*)\.$|multiplication: (.*)\. Give only")


REQUESTS_A_CHUNK = 512  # one chunk is sampled and written at a time: a few minutes of work at stake
SEQUENCES_AT_ONCE = 192  # more gain nothing on a CPU


@dataclass(frozen=True)
class SamplingPlan:
    """How completions are drawn: all that decides their distribution."""

    n: int
    """Completions for each problem."""
    temperature: float = 0.8
    """Sampling temperature; no top-p, no top-k."""
    max_tokens: int = 48
    """Longest completion, in tokens; a longer one is cut there."""
    seed: int = 0
    """Seed of the engine. Batches differ between machines, so it fixes the distribution, not each text."""
    dtype: str = "float32"
    """The engine's weights and arithmetic; without bf16 instructions float32 is several times faster than bfloat16."""


@dataclass(frozen=True)
class Sampled:
    """One problem with the policy's completions."""

    problem: Problem
    completions: tuple[str, ...]
    """(n,) texts, special tokens left out."""


def sample(policy: Path, problems: Sequence[Problem], plan: SamplingPlan, file: Path) -> list[Sampled]:
    """Returns n completions for each problem, in the problems' order; what `file` holds already is not sampled again.

    Raises:
        ValueError: `file` was drawn by another plan.
    """
    known = _read(file, plan)
    missing = [problem for problem in problems if problem.prompt not in known]
    if missing:
        with file.open("a", encoding="utf-8") as out:
            for problem, completions in _draw(policy, missing, plan):
                known[problem.prompt] = completions
                out.write(json.dumps({"prompt": problem.prompt, "completions": completions}) + "\n")
                out.flush()
    return [Sampled(problem, tuple(known[problem.prompt])) for problem in problems]


def _read(file: Path, plan: SamplingPlan) -> dict[str, list[str]]:
    """A line that a crash left torn has no newline: it is cut off, and its problem sampled again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(json.dumps(asdict(plan)) + "\n", encoding="utf-8")
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(file, len(whole))
    header, *rows = [json.loads(line) for line in whole.splitlines()]
    if header != asdict(plan):
        raise ValueError(f"file: {file} was sampled with {header}, asked for {asdict(plan)}; remove it or name another")
    return {row["prompt"]: row["completions"] for row in rows}


def _draw(policy: Path, problems: Sequence[Problem], plan: SamplingPlan) -> Iterator[tuple[Problem, list[str]]]:
    engine = _start_engine(policy, plan)
    from vllm import SamplingParams

    tokenizer = engine.get_tokenizer()
    params = SamplingParams(n=1, temperature=plan.temperature, max_tokens=plan.max_tokens)
    step = max(1, REQUESTS_A_CHUNK // plan.n)
    with tqdm(total=len(problems) * plan.n, unit="sample", desc="sampling") as bar:
        for start in range(0, len(problems), step):
            chunk = problems[start : start + step]
            prompts = [{"prompt_token_ids": _token_ids(tokenizer, problem)} for problem in chunk for _ in range(plan.n)]
            outputs = engine.generate(prompts, params, use_tqdm=False)
            texts = [output.outputs[0].text for output in outputs]
            for index, problem in enumerate(chunk):
                yield problem, texts[index * plan.n : (index + 1) * plan.n]
            bar.update(len(prompts))


def _token_ids(tokenizer, problem: Problem) -> list[int]:  # type: ignore[no-untyped-def]
    messages = [{"role": "user", "content": problem.prompt}]
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return ids


def _start_engine(policy: Path, plan: SamplingPlan) -> LLM:
    """The settings must be in the environment before vLLM is imported; what the user set stays."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    defaults = {
        "TORCH_COMPILE_DISABLE": "1",  # compiling needs g++ and gains nothing here
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout is for the figures
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    from vllm import LLM
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return LLM(
        str(policy),
        dtype=plan.dtype,
        seed=plan.seed,
        max_model_len=512,
        max_num_seqs=SEQUENCES_AT_ONCE,
        block_size=32,  # the default of 128 is longer than a prompt, so that no two samples would share its cache
        kv_cache_memory_bytes=1 << 30,
        distributed_executor_backend=UniProcExecutor,  # the default executor burns a core by polling
    )


class Moves:
    """Moves answers to problems of a pool that differ from theirs in the operands alone."""

    def __init__(self, pool: Sequence[Problem], random_: random.Random) -> None:
        self._random = random_
        self._targets: dict[_Form, list[Problem]] = defaultdict(list)
        for problem in pool:
            self._targets[_form(problem)].append(problem)

    def move(self, sampled: Sampled) -> Sampled:
        """Returns all answers of one problem moved to another; the same when one would change its verdict."""
        source, targets = sampled.problem, self._targets[_form(sampled.problem)]
        if not targets:
            return sampled
        target = self._random.choice(targets)
        texts = tuple(_rewrite(text, source, target) for text in sampled.completions)
        if any(
            is_right(source, old) != is_right(target, new) for old, new in zip(sampled.completions, texts, strict=True)
        ):
            return sampled
        return Sampled(target, texts)


def _form(problem: Problem) -> _Form:
    """The question with # for each digit, and its answer's sign: 17 + 41 and 62 + 25 are of one form, 7 + 1 is not."""
    return problem.task, re.sub(r"\d", "#", _expression(problem)), problem.answer.startswith("-")


def _expression(problem: Problem) -> str:
    match = _EXPRESSION.search(problem.prompt)
    if match is None:
        raise ValueError(f"problem: no expression found in {problem.prompt!r}")
    return str(next(group for group in match.groups() if group is not None))


def _rewrite(text: str, source: Problem, target: Problem) -> str:
    """Operands become the target's; the number answered keeps its distance to the exact answer; other numbers stay."""
    number = last_number(text)
    old = [int(digits) for digits in _DIGITS.findall(_expression(source))]
    new = [int(digits) for digits in _DIGITS.findall(_expression(target))]
    said = int(number) if number is not None and "." not in number else None
    answered = None if said is None else int(target.answer) + said - int(source.answer)
    if said is not None and answered is not None and (answered < 0) != (said < 0):
        answered = said  # the policy forgets most signs: a distance must not invent one
    matches = list(_DIGITS.finditer(text))
    pieces, end = [], 0
    for match in matches:
        value, between = int(match.group()), text[end : match.start()]
        is_answer = said is not None and value == abs(said) and (match is matches[-1] or value not in old)
        copied = value in old and not (match is matches[-1] and said == int(source.answer))
        if copied:
            pieces += [between, str(new[old.index(value)])]
        elif is_answer and answered is not None:
            bare = between.removesuffix("-") if match is matches[-1] and said is not None and said < 0 else between
            pieces += [bare, str(answered)]
        else:
            pieces += [between, match.group()]
        end = match.end()
    return "".join(pieces) + text[end:]
