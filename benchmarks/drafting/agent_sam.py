"""AgentSAM, called as an engine's worker calls it, one request at a time, each request ready before its first step.

In an engine the indexing runs beside prefill and tools; here a turn waits for it when it starts, and the wait counts as
the drafter's time. And an engine's width control decides how much of a draft is worth verifying; here drafts are held
to half the budget on average instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from agentinfer.spec_sam import DraftBatch, Speculation, SpeculationSettings
from benchmarks.drafting.drafter import Draft, Tokens


class AgentSam:
    def __init__(self, budget: int, end_of_turn: int, **settings: Any) -> None:
        # The average is met by a control loop, so aim a little lower. Bounds as for a server with little to spare.
        chosen = {"mean_drafted": 0.49 * budget, "memory_bytes": 70 << 20, "session_bytes": 8 << 20, **settings}
        self._speculation = Speculation(SpeculationSettings(stop_tokens=(end_of_turn,), **chosen))
        self._num_requests = 0
        self._request = [""]
        self._session = ""
        self._new = np.empty(0, np.int32)
        self._offsets = np.zeros(2, np.int64)

    def start_session(self, session_id: str) -> None:
        self._session = session_id

    def start_turn(self, prompt: Tokens) -> None:
        self._open(prompt)
        self._speculation.wait_until_ready()

    def draft(self, budget: int) -> DraftBatch:
        self._offsets[1] = len(self._new)
        return self._speculation.draft(self._request, self._new, self._offsets, budget)

    def tree(self, drafted: DraftBatch) -> Draft:
        width = int(drafted.num_nodes[0])
        return Draft(
            drafted.tokens[0, :width].tolist(),
            drafted.parents[0, :width].tolist(),
            drafted.path_probability[0, :width].tolist(),
        )

    def accept(self, tokens: Tokens) -> None:
        self._new = tokens

    def end_turn(self) -> None:
        self.draft(1)  # the last step's tokens
        self._speculation.close(self._request[0], finished=True)

    def end_session(self) -> None:
        self._speculation.wait_until_ready()

    def learn(self, turns: list[tuple[Tokens, Tokens]]) -> None:
        self.start_session(f"learnt {self._num_requests}")
        for prompt, reply in turns:
            self._open(prompt)
            self.accept(reply)
            self.end_turn()
            self._speculation.wait_until_ready()  # the queue is bounded

    def _open(self, prompt: Tokens) -> None:
        self._num_requests += 1
        self._request = [str(self._num_requests)]
        self._speculation.open(self._request[0], prompt, session=self._session)
