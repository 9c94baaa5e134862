"""What ranking saves: characters, and tokens by an estimate that needs no tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agentinfer.compress.search.results import SearchResult
from agentinfer.compress.search.terms import count_cjk

CHARS_PER_TOKEN = 3.5


@dataclass(frozen=True, slots=True)
class Savings:
    """Titles, snippets and URLs of all results before, of the kept ones after. Tokens are `estimated_tokens`."""

    chars_before: int
    chars_after: int
    tokens_before: int
    tokens_after: int


def estimated_tokens(text: str) -> int:
    """Tokens of `text`: one a Chinese, Japanese or Korean character, one for 3.5 characters of other scripts.

    The tokenizers of the embedded models give 3.5 and 3.6 characters a token on English prose; on Chinese SmolLM2 needs
    1.6 tokens a character and Gemma 3, whose vocabulary is large, 0.66.
    """
    cjk = count_cjk(text)
    return cjk + int((len(text) - cjk) / CHARS_PER_TOKEN + 0.999)


def savings(results: Sequence[SearchResult], kept: Iterable[int]) -> Savings:
    """`kept` are the places of the results that stay."""
    texts = [f"{result.title}{result.snippet}{result.url}" for result in results]
    stay = [texts[place] for place in kept]
    return Savings(
        chars_before=sum(map(len, texts)),
        chars_after=sum(map(len, stay)),
        tokens_before=sum(map(estimated_tokens, texts)),
        tokens_after=sum(map(estimated_tokens, stay)),
    )
