"""How varied texts are."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

NAN = float("nan")


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams over all n-grams of the texts, 0 to 1; NaN when no text has any.

    texts: words or tokens of each. "distinct-n" of Li et al. 2016, "A diversity-promoting objective function for neural
    conversation models". It falls with the number and the length of the texts, so compare equally many; taken of the
    samples of one prompt it measures per-input diversity (Kirk et al. 2024, "Understanding the effects of RLHF on LLM
    generalisation and diversity").
    """
    if n < 1:
        raise ValueError(f"n: {n} given; allowed are numbers from 1")
    grams = [tuple(text[start : start + n]) for text in texts for start in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else NAN
