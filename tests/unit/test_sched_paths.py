"""The mirror of the prefix cache's tree: who ends where, what is claimed once, what is nobody's."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentinfer.radix_ext.paths import ROOT, Claim, PathTree

SYSTEM, FIRST, SECOND = 1, 2, 3


@pytest.fixture
def paths() -> PathTree:
    """A system prompt of 100 tokens under which `first` has 30 and `second` 50."""
    paths = PathTree()
    paths.add(SYSTEM, ROOT, 100)
    paths.add(FIRST, SYSTEM, 30)
    paths.add(SECOND, SYSTEM, 50)
    paths.place("a", FIRST)
    paths.place("b", SECOND)
    return paths


def test_a_shared_prefix_is_claimed_once(paths: PathTree) -> None:
    paths.claim(Claim.WAITING, "a")
    paths.claim(Claim.WAITING, "b")
    assert paths.claimed_tokens[Claim.WAITING] == 100 + 30 + 50
    paths.release(Claim.WAITING, "a")
    assert paths.claimed_tokens[Claim.WAITING] == 100 + 50
    assert paths.claimed_tokens[Claim.WORKING] == 0


def test_claims_follow_a_session_to_its_newer_turn(paths: PathTree) -> None:
    paths.claim(Claim.WORKING, "a")
    paths.add(4, FIRST, 7)
    paths.place("a", 4)
    assert paths.claimed_tokens[Claim.WORKING] == 137
    assert paths.cached_tokens("a") == 137


def test_an_evicted_leafs_sessions_end_in_its_parent(paths: PathTree) -> None:
    paths.claim(Claim.WORKING, "a")
    paths.remove(FIRST)
    assert paths.frontier("a") == SYSTEM
    assert paths.cached_tokens("a") == 100
    assert paths.claimed_tokens[Claim.WORKING] == 100
    assert paths.take_moved() == ["a", "b"]


def test_a_split_keeps_sessions_in_the_lower_part(paths: PathTree) -> None:
    paths.claim(Claim.WORKING, "a")
    paths.split(FIRST, 9, 10)
    assert paths.parent(FIRST) == 9
    assert (paths.num_tokens(9), paths.num_tokens(FIRST)) == (10, 20)
    assert paths.frontier("a") == FIRST
    assert paths.claimed_tokens[Claim.WORKING] == 130


def test_what_a_newer_context_left_behind_is_nobodys(paths: PathTree) -> None:
    paths.add(4, SYSTEM, 60)
    paths.place("a", 4)  # the context was edited: the old branch is of no use
    assert list(paths.nobodys_leaves()) == [FIRST]


def test_an_ended_sessions_leaf_is_nobodys_but_the_shared_prefix_is_not(paths: PathTree) -> None:
    paths.forget("a")
    offered = []
    for node in paths.nobodys_leaves():
        offered.append(node)
        paths.remove(node)
    assert offered == [FIRST]
    assert SYSTEM in paths


def test_nobodys_leaves_come_least_recently_used_first_and_are_offered_again(paths: PathTree) -> None:
    paths.forget("a")
    paths.forget("b")
    paths.touch(FIRST)
    assert list(paths.nobodys_leaves()) == [SECOND, FIRST]
    assert list(paths.nobodys_leaves()) == [SECOND, FIRST]


def test_shared_tokens_are_those_that_claimants_need_anyway(paths: PathTree) -> None:
    assert paths.shared_tokens("a", Claim.WORKING) == 0
    paths.claim(Claim.WORKING, "b")
    assert paths.shared_tokens("a", Claim.WORKING) == 100


class AnyUse(RuleBasedStateMachine):
    """Random use against counts made anew after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = PathTree()
        self.nodes: list[int] = []
        self.next_id = 0

    def _new_id(self) -> int:
        self.next_id += 1
        return self.next_id

    def _pick(self, choice: int) -> int:
        return self.nodes[choice % len(self.nodes)]

    @rule(choice=st.integers(0, 99), num_tokens=st.integers(1, 9))
    def add(self, choice: int, num_tokens: int) -> None:
        parent = ROOT if not self.nodes or choice % 4 == 0 else self._pick(choice)
        node = self._new_id()
        self.paths.add(node, parent, num_tokens)
        self.nodes.append(node)

    @precondition(lambda self: self.nodes)
    @rule(choice=st.integers(0, 99), at=st.integers(1, 8))
    def split(self, choice: int, at: int) -> None:
        node = self._pick(choice)
        if self.paths.num_tokens(node) > at:
            upper = self._new_id()
            self.paths.split(node, upper, at)
            self.nodes.append(upper)

    @precondition(lambda self: self.nodes)
    @rule(choice=st.integers(0, 99))
    def remove(self, choice: int) -> None:
        node = self._pick(choice)
        if self.paths.is_leaf(node):
            self.paths.remove(node)
            self.nodes.remove(node)

    @precondition(lambda self: self.nodes)
    @rule(choice=st.integers(0, 99), session=st.sampled_from("abcd"))
    def place(self, choice: int, session: str) -> None:
        self.paths.place(session, self._pick(choice))

    @rule(session=st.sampled_from("abcd"), claim=st.sampled_from(Claim), is_on=st.booleans())
    def claim(self, session: str, claim: Claim, is_on: bool) -> None:
        (self.paths.claim if is_on else self.paths.release)(claim, session)

    @rule(session=st.sampled_from("abcd"))
    def forget(self, session: str) -> None:
        self.paths.forget(session)

    @rule(take=st.integers(0, 3))
    def evict_nobodys(self, take: int) -> None:
        for node in self.paths.nobodys_leaves():
            if not take:
                break
            take -= 1
            assert self.paths.sessions_at(node) == frozenset()
            self.paths.remove(node)
            self.nodes.remove(node)

    @invariant()
    def counts_agree(self) -> None:
        self.paths.check_integrity()


TestAnyUse = AnyUse.TestCase
