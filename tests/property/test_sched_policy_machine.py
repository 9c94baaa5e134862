"""Random lives of sessions, turns and cache: the policy's counts hold, nobody is lost, and two ranks decide alike."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentinfer.radix_ext import ROOT, AgentPolicy, KvState, SchedulingSettings, TurnRequest

CAPACITY = 1000
SETTINGS = SchedulingSettings(prefill_tokens_per_s=100.0, max_wait_s=30.0, growth_turns=0.2)
NAMES = st.sampled_from([*"abcdefgh"])


class Lives(RuleBasedStateMachine):
    """Two policies are told the same; the second stands for another rank."""

    def __init__(self) -> None:
        super().__init__()
        self.ranks = [AgentPolicy(SETTINGS, CAPACITY) for _ in range(2)]
        self.now_s = 0.0
        self.waiting: dict[str, TurnRequest] = {}
        self.running: dict[str, TurnRequest] = {}
        self.next_id = 0
        self.order: tuple[str, ...] = ()

    def _id(self) -> int:
        self.next_id += 1
        return self.next_id

    def _tell(self, what: str, *args: object) -> None:
        for rank in self.ranks:
            getattr(rank, what)(*args)

    def _pick(self, turns: dict[str, TurnRequest], choice: int) -> TurnRequest:
        return list(turns.values())[choice % len(turns)]

    def _cached(self) -> int:
        paths = self.ranks[0].paths
        return sum(paths.num_tokens(node) for node in paths._nodes if node != ROOT)

    @rule(session=st.none() | NAMES, prompt=st.integers(1, 700), parent=st.none() | NAMES, priority=st.integers(0, 1))
    def arrive(self, session: str | None, prompt: int, parent: str | None, priority: int) -> None:
        turn = TurnRequest(f"r{self._id()}", session, self.now_s, prompt, parent, priority=priority)
        self.waiting[turn.rid] = turn
        self._tell("turn_arrived", turn)

    @rule(seconds=st.floats(0.0, 20.0))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(starts=st.integers(0, 3))
    def plan(self, starts: int) -> None:
        cached = self._cached()
        kv = KvState(max(0, CAPACITY - cached), cached, len(self.running))
        first, second = (rank.plan(self.now_s, kv).order for rank in self.ranks)
        assert first == second
        assert len(set(first)) == len(first)
        assert set(first) <= set(self.waiting)
        assert first or self.running or not self.waiting, "an idle engine was given nothing to do"
        for rid in first[:starts]:
            self.running[rid] = self.waiting.pop(rid)
            self._tell("turn_started", rid, self.now_s)
        self.order = first

    @precondition(lambda self: self.running)
    @rule(choice=st.integers(0, 99), reply=st.integers(1, 60), is_last=st.booleans(), is_branch=st.booleans())
    def finish(self, choice: int, reply: int, is_last: bool, is_branch: bool) -> None:
        turn = self._pick(self.running, choice)
        del self.running[turn.rid]
        context = turn.prompt_tokens + reply
        for rank in self.ranks:
            name = turn.session or turn.rid
            parent = ROOT if is_branch else rank.paths.frontier(name)
            new = context - (0 if is_branch else rank.paths.cached_tokens(name))
            if new > 0:
                rank.paths.add(self.next_id + 1_000_000, parent, new)
                rank.paths.place(name, self.next_id + 1_000_000)
        self._id()
        self._tell("turn_finished", turn.rid, self.now_s, context, "shell", is_last)

    @precondition(lambda self: self.running)
    @rule(choice=st.integers(0, 99))
    def retract(self, choice: int) -> None:
        kept = [rank.retraction_order(list(self.running), self.now_s) for rank in self.ranks]
        assert kept[0] == kept[1]
        turn = self.running.pop(kept[0][-1])
        self.waiting[turn.rid] = turn
        self._tell("turn_requeued", turn.rid, self.now_s)

    @precondition(lambda self: self.waiting or self.running)
    @rule(choice=st.integers(0, 99))
    def drop(self, choice: int) -> None:
        turn = self._pick({**self.waiting, **self.running}, choice)
        self.waiting.pop(turn.rid, None)
        self.running.pop(turn.rid, None)
        self._tell("turn_dropped", turn.rid, self.now_s)

    @rule(session=NAMES, tool=st.sampled_from(["shell", "person", "search"]))
    def call_tool(self, session: str, tool: str) -> None:
        self._tell("tool_called", session, (tool,), self.now_s)

    @rule(session=NAMES)
    def end(self, session: str) -> None:
        self._tell("session_ended", session)

    @rule(num_leaves=st.integers(1, 5), is_locked=st.integers(0, 3))
    def evict(self, num_leaves: int, is_locked: int) -> None:
        taken = []
        for rank in self.ranks:
            found = []
            for node in rank.victims(self.now_s):
                if node % 4 == is_locked:
                    continue
                found.append(node)
                rank.paths.remove(node)
                if len(found) == num_leaves:
                    break
            taken.append(found)
        assert taken[0] == taken[1]

    @rule()
    def all_leaves_are_offered(self) -> None:
        paths = self.ranks[0].paths
        leaves = {node for node in paths._nodes if paths.is_leaf(node)}
        assert set(self.ranks[0].victims(self.now_s)) == leaves

    @invariant()
    def counts_agree(self) -> None:
        for rank in self.ranks:
            rank.check_integrity()
        shown = self.ranks[0].snapshot(self.now_s)
        assert shown == self.ranks[1].snapshot(self.now_s)
        assert shown["waiting"] == len(self.waiting)

    def teardown(self) -> None:
        """Everybody is served in the end, within a bound of plans, and nothing is left."""
        for _ in range(4 * len(self.waiting) + 4 * len(self.running) + 4):
            for turn in list(self.running.values()):
                del self.running[turn.rid]
                self._tell("turn_finished", turn.rid, self.now_s, turn.prompt_tokens, None, True)
            self.now_s += 31.0
            self.plan(starts=3)
        assert not self.waiting
        for name in "abcdefgh":
            self._tell("session_ended", name)
        assert not self.ranks[0].snapshot(self.now_s)["sessions"]


Lives.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLives = Lives.TestCase
