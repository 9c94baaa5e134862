"""The drafters by name, and what to install where one is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.drafting.drafter import BenchmarkError, Drafter

NAMES = ("agent_sam", "sglang_ngram", "arctic_suffix", "prompt_lookup")
# Distributions whose versions a drafter's figures depend on.
PACKAGES = {"sglang_ngram": ("sglang", "torch"), "arctic_suffix": ("arctic-inference",)}
_HOW_TO_INSTALL = {
    "sglang_ngram": "it comes with the engine and compiles itself with g++ and ninja: make setup",
    "arctic_suffix": "see requirements/baselines.txt: make setup leaves it out",
}


def factory(name: str, budget: int, end_of_turn: int, settings: dict[str, Any]) -> Callable[[], Drafter]:
    """What makes drafter `name`. Raises BenchmarkError for an unknown name, and where its library is not installed.

    The made function raises BenchmarkError for settings that this drafter does not have.
    """
    made = _class_of(name)
    fixed = {"sglang_ngram": {"budget": budget}, "agent_sam": {"budget": budget, "end_of_turn": end_of_turn}}.get(
        name, {}
    )

    def make() -> Drafter:
        try:
            return made(**fixed, **settings)
        except TypeError as error:
            raise BenchmarkError(f"{name} does not take the settings {settings}: {error}") from error

    return make


def _class_of(name: str) -> Callable[..., Drafter]:
    if name not in NAMES:
        raise BenchmarkError(f"no drafter is named {name!r}; there are {', '.join(NAMES)}")
    try:
        if name == "agent_sam":
            from benchmarks.drafting.agent_sam import AgentSam

            return AgentSam
        if name == "sglang_ngram":
            from benchmarks.drafting.sglang_ngram import SglangNgram

            return SglangNgram
        if name == "arctic_suffix":
            from benchmarks.drafting.arctic_suffix import ArcticSuffix

            return ArcticSuffix
    except ImportError as error:
        if name not in _HOW_TO_INSTALL:
            raise
        raise BenchmarkError(f"{name} is not installed ({error}); {_HOW_TO_INSTALL[name]}") from error
    from benchmarks.drafting.prompt_lookup import PromptLookup

    return PromptLookup
