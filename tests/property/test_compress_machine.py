"""Compression under any order of events: what the engine is sent says all that the client said, or names it by id."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agentinfer.compress.job import CompressionJob, Distil, Ended, State, Warm
from agentinfer.compress.note import Note
from agentinfer.compress.store import CompositionStore
from tests.agent_sessions import SYSTEM, assistant, call, chat, tool, user
from tests.compress_builders import SMALL, assert_nothing_lost, messages_of, note_for

TOOLS = ("bash", "search", "crawl")


class CompressionMachine(RuleBasedStateMachine):
    """One session's job, its client (and a second one), and a runtime that carries commands out late, twice or not."""

    @initialize(payloads=st.booleans(), as_step=st.booleans(), store_bytes=st.sampled_from([2_000, 40_000, 1 << 20]))
    def start(self, payloads: bool, as_step: bool, store_bytes: int) -> None:
        self.settings = replace(SMALL, take_payloads=payloads, note_is_step=as_step, min_payload_chars=200)
        self.job = CompressionJob(self.settings)
        self.store = CompositionStore(store_bytes)
        self.history = [SYSTEM, user("Do it.")]
        self.distils: list[Distil] = []
        self.warms: list[Warm] = []
        self.now_s = 0.0
        self.num_calls = 0
        for seed in range(6):
            self.agent_works(seed, 1)

    @rule(seed=st.integers(0, 10**6), num_calls=st.integers(1, 3))
    def agent_works(self, seed: int, num_calls: int) -> None:
        rng = random.Random(seed)
        ids = [f"c{self.num_calls + number}" for number in range(num_calls)]
        self.num_calls += num_calls
        calls = [call(each, rng.choice(TOOLS), text="w" * rng.choice((5, 700))) for each in ids]
        rng.shuffle(ids)
        results = [tool(each, "some output " * rng.choice((1, 30, 30))) for each in ids]
        self.history += [assistant(f"I think {seed}.", *calls), *results]

    @rule(is_answered=st.booleans())
    def turn(self, is_answered: bool) -> None:
        self.serve(self.history, is_answered)

    @rule(text=st.sampled_from(["A title, please.", "Something else."]))
    def other_client(self, text: str) -> None:
        self.serve([SYSTEM, user(text)], True)

    @rule(place=st.integers(0, 40), text=st.sampled_from(["edited", ""]))
    def client_edits(self, place: int, text: str) -> None:
        place %= len(self.history)
        self.history[place] = {**self.history[place], "content": text}

    @rule(back=st.integers(1, 3))
    def client_goes_back(self, back: int) -> None:
        starts = [index for index, each in enumerate(self.history) if each["role"] == "assistant"]
        if len(starts) > back:
            del self.history[starts[-back] :]

    @rule()
    def runtime_is_quick(self) -> None:
        """What was asked for last is done at once, as it mostly is."""
        self.serve(self.history, True)
        if self.job.state is State.DISTILLING:
            distil = self.distils[-1]
            note = note_for(distil.plan.taken)
            self.carry_out(self.job.noted(distil.job, note, messages_of(self.history), self.now_s))
        if self.job.state is State.WARMING:
            self.carry_out(self.job.warmed(self.warms[-1].job, len(self.warms[-1].messages)))
        self.serve(self.history, True)

    @rule(which=st.integers(0, 5), is_empty=st.booleans(), passed_s=st.sampled_from([0.0, 1.0, 100.0]))
    def note_comes(self, which: int, is_empty: bool, passed_s: float) -> None:
        self.now_s += passed_s
        if self.distils:
            distil = self.distils[which % len(self.distils)]
            note = Note() if is_empty else note_for(distil.plan.taken)
            self.carry_out(self.job.noted(distil.job, note, messages_of(self.history), self.now_s))

    @rule(which=st.integers(0, 5))
    def kv_is_there(self, which: int) -> None:
        if self.warms:
            warm = self.warms[which % len(self.warms)]
            self.carry_out(self.job.warmed(warm.job, len(warm.messages)))

    @rule(job=st.integers(0, 20))
    def something_fails(self, job: int) -> None:
        self.carry_out(self.job.failed(job, "killed"))

    def serve(self, bodies: list, is_answered: bool) -> None:
        conversation = chat(*bodies)
        swapped, commands = self.job.turn_begins(conversation, self.now_s)
        self.carry_out(commands)
        if swapped is not None:
            self.store.put("s", swapped)
        active = self.store.find(conversation.chain)
        sent = list(bodies) if active is None else active.applied(bodies)
        if active is not None and self.settings.note_is_step and not self.settings.take_payloads:
            assert_nothing_lost(bodies, sent, active)
        if active is not None:
            self.check_taken(bodies, active)
        if is_answered:
            tokens = self.job.sizes.messages(chat(*sent).messages)
            (reply,) = messages_of([assistant("Next.", call("r"))])
            self.carry_out(self.job.turn_ended(conversation, reply, tokens, active, self.now_s))

    def check_taken(self, bodies: list, active) -> None:
        """What was taken is what the client's own message says."""
        for index, each in active.taken.items():
            own = messages_of(bodies)[index]
            assert each.text == (own.text if own.role == "tool" else own.tool_calls[0].arguments_text) or (
                own.role == "assistant"
                and all(part in [c.arguments_text for c in own.tool_calls] for part in each.text.split("\n"))
            )

    def carry_out(self, commands: list) -> None:
        for command in commands:
            if isinstance(command, Distil):
                self.distils.append(command)
            elif isinstance(command, Warm):
                self.warms.append(command)
            else:
                assert isinstance(command, Ended)

    @invariant()
    def the_job_holds_something_only_while_it_is_on(self) -> None:
        if hasattr(self, "job"):
            is_made = self.job.state in (State.WARMING, State.READY)
            assert (self.job.composition is not None) is is_made
            self.store.check_integrity()


CompressionMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestCompression = CompressionMachine.TestCase
