"""Arctic Inference's suffix decoding, called as vLLM's `SuffixDecodingProposer` calls it: local and global tree.

The package is not part of the engine: requirements/baselines.txt says how to install it.
"""

from __future__ import annotations

import numpy as np
from arctic_inference.suffix_decoding import SuffixDecodingCache, SuffixDecodingDraft  # type: ignore[import-untyped]

from benchmarks.drafting.drafter import Draft, Tokens


class ArcticSuffix:
    """Defaults are vLLM's (`suffix_decoding_*` in `SpeculativeConfig`). `max_cached_requests` 0: local tree only."""

    def __init__(
        self,
        max_tree_depth: int = 24,
        max_spec_factor: float = 1.0,
        max_spec_offset: float = 0.0,
        min_token_prob: float = 0.1,
        use_tree_spec: bool = False,
        max_cached_requests: int = 10_000,
    ) -> None:
        self._cache = SuffixDecodingCache(max_tree_depth=max_tree_depth, max_cached_requests=max_cached_requests)
        self._depth = max_tree_depth
        self._factor = max_spec_factor
        self._offset = max_spec_offset
        self._least_chance = min_token_prob
        self._as_tree = use_tree_spec
        self._num_requests = 0
        self._text = np.empty(0, np.int32)
        self._length = 0

    def start_session(self, session_id: str) -> None:
        pass

    def start_turn(self, prompt: Tokens) -> None:
        self._num_requests += 1
        self._length = len(prompt)
        # vLLM keeps a request's tokens in a row of an array as long as the context window.
        self._text = np.concatenate([prompt, np.empty(1 << 15, np.int32)])
        self._cache.start_request(self._num_requests, self._text[: self._length])

    def draft(self, budget: int) -> SuffixDecodingDraft:
        return self._cache.speculate(
            self._num_requests,
            self._text[max(0, self._length - self._depth) : self._length],
            max_spec_tokens=budget - 1,
            max_spec_factor=self._factor,
            max_spec_offset=self._offset,
            min_token_prob=self._least_chance,
            use_tree_spec=self._as_tree,
        )

    def tree(self, drafted: SuffixDecodingDraft) -> Draft:
        """Arctic counts nodes from the first drafted one; its probabilities are those of whole paths."""
        return Draft(
            [int(self._text[self._length - 1]), *drafted.token_ids],
            [0, *(parent + 1 for parent in drafted.parents)],
            [1.0, *drafted.probs],
        )

    def accept(self, tokens: Tokens) -> None:
        end = self._length + len(tokens)
        if end > len(self._text):
            self._text = np.concatenate([self._text, np.empty(len(self._text), np.int32)])
        self._text[self._length : end] = tokens
        self._length = end
        self._cache.add_active_response(self._num_requests, tokens.tolist())

    def end_turn(self) -> None:
        self._cache.stop_request(self._num_requests)

    def end_session(self) -> None:
        pass

    def learn(self, turns: list[tuple[Tokens, Tokens]]) -> None:
        """Replies only: a prompt is in its own request's tree and goes with it."""
        for _, reply in turns:
            self._num_requests += 1
            self._cache.start_request(self._num_requests, [])
            self._cache.add_active_response(self._num_requests, reply)
            self._cache.stop_request(self._num_requests)
