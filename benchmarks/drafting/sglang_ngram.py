"""SGLang's own n-gram corpus, called as its worker calls it (`srt/speculative/ngram_worker.py` of sglang 0.5.21).

The worker puts the last `max_trie_depth` tokens of a decoding request into the corpus after each verify step, before
the step's own tokens are among them; a prompt is never put in as a whole. `insert_prompt` does that too, which the
worker's authors tried and left out.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sglang.srt.speculative.cpp_ngram.ngram_corpus import NgramCorpus

from benchmarks.drafting.drafter import Draft, Tokens


@dataclass(frozen=True, slots=True)
class NgramDraft:
    """`NgramCorpus.batch_get` of one request: node tokens, and the square mask of ancestors, one row a node."""

    tokens: Any
    mask: Any


class SglangNgram:
    """Defaults are SGLang's (`arg_groups/fields/spec.py`); `budget` is its `speculative_num_draft_tokens`."""

    def __init__(
        self,
        budget: int,
        max_trie_depth: int = 18,
        min_bfs_breadth: int = 1,
        max_bfs_breadth: int = 10,
        match_type: str = "BFS",
        capacity: int = 10_000_000,
        insert_prompt: bool = False,
    ) -> None:
        torch.set_num_threads(1)
        self._budget = budget
        self._depth = max_trie_depth
        self._insert_prompt = insert_prompt
        self._corpus = NgramCorpus(
            max_trie_depth=max_trie_depth,
            min_bfs_breadth=min_bfs_breadth,
            max_bfs_breadth=max_bfs_breadth,
            draft_token_num=budget,
            match_type=match_type,
            capacity=capacity,
        )
        self._num_requests = 0
        self._input_ids = array("q")
        self._output_ids = array("q")

    def start_session(self, session_id: str) -> None:
        pass

    def start_turn(self, prompt: Tokens) -> None:
        self._num_requests += 1
        self._input_ids = array("q", prompt.astype(np.int64).tobytes())
        self._output_ids = array("q")
        if self._insert_prompt:
            self._corpus.batch_put([prompt.tolist()])
            self._corpus.synchronize()

    def draft(self, budget: int) -> NgramDraft:
        self._corpus.synchronize()
        length = len(self._input_ids) + len(self._output_ids)
        tokens, mask = self._corpus.batch_get([str(self._num_requests)], [self._tail()], [length])
        return NgramDraft(tokens, mask)

    def tree(self, drafted: NgramDraft) -> Draft:
        """A node's parent is its latest ancestor but itself. Every node is verified, those that only pad too."""
        width = len(drafted.tokens)
        ancestors = np.tril(drafted.mask.reshape(width, width), -1) * np.arange(width)
        return Draft(drafted.tokens.tolist(), ancestors.max(axis=1).tolist())

    def accept(self, tokens: Tokens) -> None:
        if self._output_ids:  # the first token comes from prefill, where the worker puts nothing in
            self._corpus.batch_put([self._tail()])
            if len(self._output_ids) == 1 and self._num_requests > 1:
                self._corpus.erase_match_state([str(self._num_requests - 1)])
        self._output_ids.extend(tokens.tolist())

    def end_turn(self) -> None:
        self._corpus.synchronize()

    def end_session(self) -> None:
        pass

    def learn(self, turns: list[tuple[Tokens, Tokens]]) -> None:
        """Puts in at once what decoding puts in step by step: every reply, with the prompt's end before it."""
        for prompt, reply in turns:
            before = prompt if self._insert_prompt else prompt[1 - self._depth :]
            self._corpus.batch_put([before.tolist() + reply.tolist()])
        self._corpus.synchronize()

    def _tail(self) -> list[int]:
        """As `_efficient_concat_last_n`: the request's last `max_trie_depth` tokens, as the lists the corpus takes."""
        output = list(self._output_ids[-self._depth :])
        missing = self._depth - len(output)
        return (list(self._input_ids[-missing:]) if missing else []) + output
