"""Many clients at once, in any order and with any mishap: conversations keep their sessions, memory stays bounded."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from agentinfer.hints import AgentHints
from agentinfer.messages import Reply
from agentinfer.sessions import Turn
from tests.agent_sessions import Bench, Body, assistant, call, chat, replied, text_prompt, tool, user

TASKS = ("Fix the failing test in the parser module, please.", "Hi", "Hi there")


@dataclass(eq=False)
class Client:
    """One agent. `session_id` is where its next turn must land; None when nothing can be said about it."""

    messages: list[Body]
    hint: str | None = None
    session_id: str | None = None
    turn: Turn | None = None
    replies: list[int] = field(default_factory=list)


class SessionMachine(RuleBasedStateMachine):
    """Replies are unique, as sampled text and generated call ids are, so every continuation has one right session.

    Tasks are not: several clients ask the same. Once a session was lost to a limit, a request of its client may rightly
    be taken for another's with the same task, so only the invariants are checked from then on.
    """

    waiting = Bundle("waiting")
    served = Bundle("served")

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count()
        self.num_running = 0

    @initialize(max_sessions=st.sampled_from([3, 50]), max_bytes=st.sampled_from([30_000, 1 << 30]))
    def build(self, max_sessions: int, max_bytes: int) -> None:
        self.max_sessions, self.max_bytes = max_sessions, max_bytes
        self.bench = Bench(max_sessions, 100.0, max_bytes)

    @property
    def is_lossless(self) -> bool:
        return not self.bench.table.totals["evicted"] and not self.bench.table.totals["expired"]

    def begin(self, client: Client) -> None:
        turn = self.bench.begin(chat(*client.messages), AgentHints(session=client.hint))
        if client.hint is not None:
            assert turn.session_id == client.hint
        elif client.session_id is not None and self.is_lossless:
            assert turn.session_id == client.session_id, turn.evidence
        client.turn, client.session_id = turn, turn.session_id
        self.num_running += 1

    @rule(
        target=served,
        task=st.sampled_from(TASKS),
        minute=st.integers(0, 2),
        hint=st.none() | st.sampled_from(["red", "blue"]),
        num_samples=st.integers(1, 3),
    )
    def start(self, task, minute, hint, num_samples):
        clients = [Client([system(minute), user(task)], hint) for _ in range(num_samples)]
        for client in clients:
            self.begin(client)
        if hint is None:
            assert len({client.session_id for client in clients}) == num_samples
        return multiple(*clients)

    @rule(
        target=waiting,
        client=consumes(served),
        num_calls=st.integers(0, 2),
        outcome=st.sampled_from(["ok", "client_gone"]),
    )
    def reply(self, client, num_calls, outcome):
        number = next(self.numbers)
        calls = [call(f"call_{number}_{index}", path=str(index)) for index in range(num_calls)]
        message = assistant(f"Reply {number}.", *calls)
        self.bench.finish(client.turn, message, outcome)
        self.num_running -= 1
        client.replies.append(len(client.messages))
        client.messages.append(message)
        client.messages += [tool(item["id"], "done") for item in calls] or [user("go on")]
        return client

    @rule(target=waiting, client=consumes(served))
    def fail(self, client):
        self.bench.finish(client.turn, Reply(), "error")
        self.num_running -= 1
        client.session_id = None
        return client

    @rule(target=waiting, client=consumes(served))
    def refuse(self, client):
        self.bench.table.abandon(client.turn)
        self.num_running -= 1
        client.session_id = None
        return client

    @rule(target=served, client=consumes(waiting))
    def go_on(self, client):
        self.begin(client)
        return client

    @rule(target=served, client=consumes(waiting), minute=st.integers(0, 9))
    def go_on_with_another_clock(self, client, minute):
        client.messages[0] = system(minute)
        if len(client.replies) == 0:
            client.session_id = None  # with nothing of ours in it, an edited first request is a new one
        self.begin(client)
        return client

    @rule(target=served, client=consumes(waiting), data=st.data())
    def rewind(self, client, data):
        if not client.replies:
            return multiple()
        position = data.draw(st.sampled_from(client.replies))
        client.messages = [*client.messages[: position + 1], user(f"rather {next(self.numbers)}")]
        client.replies = [reply for reply in client.replies if reply <= position]
        client.session_id = None  # the same session or a child, by whether it was free
        self.begin(client)
        return client

    @rule(client=consumes(waiting))
    def leave(self, client):
        """The client is never heard of again."""

    @rule(client=waiting)
    def close(self, client):
        if client.session_id is not None:
            self.bench.table.close(client.session_id)

    @rule(seconds=st.sampled_from([0.1, 60.0]))
    def wait(self, seconds):
        self.bench.clock.advance(seconds)

    @rule()
    def expire(self):
        self.bench.table.expire()

    @rule(text=st.text("ab", max_size=40), reply=st.text("ab", min_size=1, max_size=3))
    def complete_text(self, text, reply):
        turn = self.bench.begin(text_prompt(text))
        self.bench.finish(turn, Reply(reply))
        following = self.bench.begin(text_prompt(text + reply + "c"))
        if self.is_lossless:
            assert following.evidence in ("reply", "rewind")
        self.bench.table.abandon(following)

    @rule(client=served)
    def finish_what_is_unknown(self, client):
        """A turn of another table must not disturb this one."""
        other = Bench()
        turn = other.begin(chat(*client.messages))
        self.bench.table.finish_turn(turn, replied(assistant("x")), None, "ok")

    @invariant()
    def holds_together(self):
        if not hasattr(self, "bench"):
            return
        table = self.bench.table
        table.check_integrity()
        counts = table.counts()
        assert sum(counts.values()) == len(table) <= self.max_sessions + self.num_running
        assert table.size_bytes <= self.max_bytes or counts["running"] == len(table)


def system(minute: int) -> Body:
    return {"role": "system", "content": f"It is 12:0{minute}."}


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
