"""Admission: which sessions run at once, so that what they have cached is still there when they come back.

Once the contexts of all live agents exceed the cache, every order of the queue recomputes most prompts (92% under
first come, first served). So turns run only for *members* of a working set that fits. It is filled in the order of
seniority, strictly: a younger session never takes the room that the eldest held one waits for, which keeps the big
contexts of old sessions cached and leaves the small ones of young sessions to be recomputed. Between filling
(`join_share`) and pausing (all of the cache) lies the room in which members grow; without it sessions would be paused
and resumed at every turn.

    0 ───────────── join_share ───────────── capacity
      members join              members grow, visitors pass       above: the youngest member with a waiting turn pauses

Sessions change their standing at turn boundaries only.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from agentinfer.radix_ext.paths import Claim, PathTree
from agentinfer.radix_ext.sessions import Session, Standing
from agentinfer.radix_ext.settings import SchedulingSettings


class WorkingSet:
    """Members and visitors, and the held sessions with waiting turns in their line. Not thread-safe.

    Counts are kept up to date by `refresh`, which is due whenever a session's context or what is cached of it changed.
    """

    def __init__(self, settings: SchedulingSettings, paths: PathTree, capacity_tokens: int) -> None:
        self._settings = settings
        self._paths = paths
        self.capacity_tokens = capacity_tokens
        self.members: dict[str, Session] = {}
        self.visitors: dict[str, Session] = {}
        self._members = _Line()
        self._line = _Line()
        self._held_cached = _Line()
        self._to_come: dict[str, int] = {}
        self._sum_to_come = 0

    def committed_tokens(self) -> int:
        """What members and visitors have cached, each node once, and what their next turns will add."""
        return self._paths.claimed_tokens[Claim.WORKING] + self._sum_to_come

    def needed_tokens(self, session: Session) -> int:
        """What the session would add to `committed_tokens`, were it let in: prefixes shared with members come free."""
        own = session.context_tokens - self._paths.shared_tokens(session.id, Claim.WORKING)
        return max(own, 0) + self._growth_tokens(session)

    def join(self, session: Session) -> None:
        """The session becomes a member."""
        self._leave(session)
        session.standing = Standing.MEMBER
        self.members[session.id] = session
        self._members.add(session)
        self._enter(session)

    def visit(self, session: Session) -> None:
        """The session's waiting turns may run; it is held again once they are done."""
        self._leave(session)
        session.standing = Standing.VISITOR
        self.visitors[session.id] = session
        self._enter(session)

    def hold(self, session: Session) -> None:
        """The session has no right to run; where a turn of it waits, it stands in line."""
        self._leave(session)
        session.standing = Standing.HELD
        self._paths.release(Claim.WORKING, session.id)
        if session.waiting:
            self._line.add(session)
        if self._paths.cached_tokens(session.id):
            self._held_cached.add(session)

    def remove(self, session: Session) -> None:
        """The session is gone."""
        self._leave(session)
        self._paths.release(Claim.WORKING, session.id)

    def refresh(self, session: Session) -> None:
        """The session's context, its growth, or what is cached of it changed."""
        if session.standing is not Standing.HELD:
            self._count_to_come(session)
        elif bool(self._paths.cached_tokens(session.id)) != (session in self._held_cached):
            self.hold(session)

    def head(self) -> Session | None:
        """The eldest held session with a waiting turn."""
        return self._line.eldest()

    def cheapest_in_line(self) -> Session | None:
        """The session in line of whose context the least is to be computed, of equals the eldest."""

        def cost(session: Session) -> tuple[int, tuple[int, ...]]:
            return session.context_tokens - self._paths.cached_tokens(session.id), session.seniority

        return min(self._line.youngest_first(), key=cost, default=None)

    def held_and_cached(self) -> Iterator[Session]:
        """Held sessions of which something is cached, the youngest first."""
        return self._held_cached.youngest_first()

    @property
    def num_in_line(self) -> int:
        return len(self._line)

    def has_room_to_join(self, session: Session, freed_tokens: int = 0) -> bool:
        """Whether the session could join, were `freed_tokens` less committed."""
        limit = self.capacity_tokens * self._settings.join_share + freed_tokens
        return self.committed_tokens() + self.needed_tokens(session) <= limit

    def has_room_to_visit(self, session: Session) -> bool:
        return self.committed_tokens() + self.needed_tokens(session) <= self.capacity_tokens

    def smallest_member_tokens(self) -> int:
        """The context of the smallest member, 0 without members."""
        return min((member.context_tokens for member in self.members.values()), default=0)

    def pausable(self) -> Iterator[Session]:
        """Members at a turn boundary with a waiting turn, the youngest first."""
        return (member for member in self._members.youngest_first() if member.waiting and not member.running)

    def check_integrity(self, sessions: Iterable[Session]) -> None:
        """Raises AssertionError naming the session whose standing disagrees with the sets."""
        inside = 0
        for session in sessions:
            is_held = session.standing is Standing.HELD
            places = (session.id in self.members, session.id in self.visitors, session in self._line)
            wanted = (
                session.standing is Standing.MEMBER,
                session.standing is Standing.VISITOR,
                is_held and bool(session.waiting),
            )
            assert places == wanted, f"{session.id} is {session.standing.value} but stands in {places}"
            cached = self._paths.cached_tokens(session.id)
            assert (session in self._held_cached) == (is_held and cached > 0), (
                f"{session.id} has {cached} tokens cached"
            )
            inside += 0 if is_held else max(session.context_tokens - cached, 0) + self._growth_tokens(session)
        assert self._sum_to_come == inside, f"{self._sum_to_come} tokens are to come, recounted {inside}"
        for line in (self._members, self._line, self._held_cached):
            line.check_integrity()

    def _growth_tokens(self, session: Session) -> int:
        return int(session.growth_tokens * self._settings.growth_turns)

    def _count_to_come(self, session: Session) -> None:
        missing = session.context_tokens - self._paths.cached_tokens(session.id)
        to_come = max(missing, 0) + self._growth_tokens(session)
        self._sum_to_come += to_come - self._to_come.get(session.id, 0)
        self._to_come[session.id] = to_come

    def _enter(self, session: Session) -> None:
        self._paths.claim(Claim.WORKING, session.id)
        self._count_to_come(session)

    def _leave(self, session: Session) -> None:
        if self.members.pop(session.id, None) is not None:
            self._members.discard(session)
        self.visitors.pop(session.id, None)
        self._line.discard(session)
        self._held_cached.discard(session)
        self._sum_to_come -= self._to_come.pop(session.id, 0)


class _Line:
    """Sessions in the order of seniority."""

    def __init__(self) -> None:
        self._order: list[tuple[int, ...]] = []
        self._by_seniority: dict[tuple[int, ...], Session] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, session: Session) -> bool:
        return session.seniority in self._by_seniority

    def add(self, session: Session) -> None:
        if session.seniority not in self._by_seniority:
            insort(self._order, session.seniority)
            self._by_seniority[session.seniority] = session

    def discard(self, session: Session) -> None:
        if self._by_seniority.pop(session.seniority, None) is not None:
            del self._order[bisect_left(self._order, session.seniority)]

    def eldest(self) -> Session | None:
        return self._by_seniority[self._order[0]] if self._order else None

    def youngest_first(self) -> Iterator[Session]:
        """Those who are in line now and have not left by the time it is their turn."""
        for seniority in reversed(self._order.copy()):
            session = self._by_seniority.get(seniority)
            if session is not None:
                yield session

    def check_integrity(self) -> None:
        assert self._order == sorted(self._by_seniority), "a line is out of the order of seniority"
