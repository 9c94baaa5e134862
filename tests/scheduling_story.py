"""Plays one long random story to AgentSched's policy over SGLang's real cache, and prints all that was decided.

Run as a program, so that two processes with different hash seeds and memory addresses can be compared: they are to each
other as the ranks of one engine are. argv: the story's seed.
"""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Any

from agentinfer.radix_ext import AgentPolicy, KvState, SchedulingSettings
from tests.scheduling_builders import CacheHarness, Request

SIZE = 400


class Story:
    """A cache a third as large as its sessions' contexts; time goes on by what is told."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.harness = CacheHarness(
            SIZE, AgentPolicy(SchedulingSettings(prefill_tokens_per_s=50.0), SIZE), num_requests=6
        )
        self.decided: list[Any] = []
        self.queue: dict[str, Request] = {}
        self.contexts = {f"s{n}": self.tokens(30) for n in range(9)}
        self.busy: set[str] = set()
        evict = self.harness.cache._evict_device_leaf

        def evict_leaf(node_id: int, tracker: Any) -> Any:
            self.decided.append(("evict", node_id))
            return evict(node_id, tracker)

        self.harness.cache._evict_device_leaf = evict_leaf

    def tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(9) for _ in range(count)]

    def step(self, number: int) -> None:
        rng, harness, book = self.rng, self.harness, self.harness.book
        book.advance(number * 0.25)
        idle = sorted(set(self.contexts) - self.busy)
        if idle and rng.random() < 0.5:
            session = rng.choice(idle)
            self.busy.add(session)
            request = Request(f"r{number}", self.contexts[session] + self.tokens(6), session)
            book.arrived(request)
            self.queue[request.rid] = request
        if rng.random() < 0.05:
            book.policy.engine_measured(rng.choice((40.0, 60.0)))
        kv = KvState(harness.allocator.available_size(), harness.cache.full_evictable_size(), len(harness.running))
        order = book.policy.plan(book.now_s, kv).order
        self.decided.append(("plan", order))
        for rid in order:
            if not harness.start(self.queue[rid]):
                break
            del self.queue[rid]
        for request in list(harness.running):
            # SGLang takes requests back when memory runs out; here also at random, since admission keeps that rare.
            if not harness.decode(request, rng.randrange(9)) or rng.random() < 0.02:
                self.retract_one()
                break
            if rng.random() < 0.3:
                self.end(request)

    def retract_one(self) -> None:
        running = {each.rid: each for each in self.harness.running}
        ranks = self.harness.book.retraction_order(list(running))
        self.decided.append(("retract", ranks))
        last = running[ranks[-1]]
        self.harness.retract(last)
        self.queue[last.rid] = last

    def end(self, request: Request) -> None:
        session = self.harness.book.session_of(request)
        assert session is not None
        self.harness.end(request, is_abort=self.rng.random() < 0.1)
        self.busy.discard(session)
        context = list(request.get_fill_ids())
        if len(context) > 250 or self.rng.random() < 0.03:
            self.harness.book.session_ended(session)
            context = self.tokens(30)
        else:
            self.harness.book.tool_called(
                session, self.rng.choice((["search"], ["shell", "edit"], [])), self.harness.book.now_s
            )
        self.contexts[session] = context


def main() -> None:
    for seed in sys.argv[1:]:
        story = Story(int(seed))
        for number in range(600):
            story.step(number)
            if number % 100 == 0:
                story.harness.check()
        kinds = {kind: sum(each[0] == kind for each in story.decided) for kind in ("plan", "evict", "retract")}
        digest = hashlib.sha256(repr(story.decided).encode()).hexdigest()
        print("DECIDED", digest, *kinds.values(), story.harness.cache.num_unordered_evictions)  # noqa: T201


if __name__ == "__main__":
    main()
