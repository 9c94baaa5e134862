"""Prompt lookup: what followed the latest occurrence of the last few tokens in this request's own text.

The method of transformers' `PromptLookupCandidateGenerator` and of vLLM's `NgramProposer`, in the variant that does
best on agent traffic: the longest of 4, 3 and 2 tokens that occurs, and of its occurrences the latest.
"""

from __future__ import annotations

import numpy as np

from benchmarks.drafting.drafter import Draft, Tokens


class PromptLookup:
    def __init__(self, shortest: int = 2, longest: int = 4) -> None:
        self._shortest = shortest
        self._longest = longest
        self._text = np.empty(1 << 16, np.int32)
        self._length = 0

    def start_session(self, session_id: str) -> None:
        pass

    def start_turn(self, prompt: Tokens) -> None:
        self._length = 0
        self._append(prompt)

    def draft(self, budget: int) -> Tokens:
        text = self._text[: self._length]
        ends = np.flatnonzero(text[:-1] == text[-1])
        found = -1
        for length in range(2, self._longest + 1):
            ends = ends[ends >= length - 1]
            if not len(ends):
                break
            ends = ends[text[ends - length + 1] == text[-length]]
            if not len(ends):
                break
            if length >= self._shortest:
                found = int(ends[-1])
        return text[found + 1 : found + budget] if found >= 0 else text[:0]

    def tree(self, drafted: Tokens) -> Draft:
        tokens = [int(self._text[self._length - 1]), *drafted.tolist()]
        return Draft(tokens, [0, *range(len(tokens) - 1)])

    def accept(self, tokens: Tokens) -> None:
        self._append(tokens)

    def end_turn(self) -> None:
        pass

    def end_session(self) -> None:
        pass

    def learn(self, turns: list[tuple[Tokens, Tokens]]) -> None:
        """Nothing is kept from one request to the next."""

    def _append(self, tokens: Tokens) -> None:
        end = self._length + len(tokens)
        if end > len(self._text):
            self._text = np.concatenate([self._text, np.empty(max(end, len(self._text)), np.int32)])
        self._text[self._length : end] = tokens
        self._length = end
