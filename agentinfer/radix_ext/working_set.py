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
    """Members and visitors, and the held sessions with waiting turns in their line. Not thread-safe."""

    def __init__(self, settings: SchedulingSettings, paths: PathTree, capacity_tokens: int) -> None:
        self._settings = settings
        self._paths = paths
        self.capacity_tokens = capacity_tokens
        self.members: dict[str, Session] = {}
        self.visitors: dict[str, Session] = {}
        self._held: list[tuple[tuple[int, ...], str]] = []
        self._line: list[tuple[tuple[int, ...], str]] = []
        self._in_line: dict[str, Session] = {}

    def committed_tokens(self) -> int:
        """What members and visitors have cached, each node once, and what their next turns will add."""
        to_come = sum(self._to_come(each) for part in (self.members, self.visitors) for each in part.values())
        return self._paths.claimed_tokens[Claim.WORKING] + to_come

    def needed_tokens(self, session: Session) -> int:
        """What the session would add to `committed_tokens`, were it let in: shared prefixes of members come free."""
        return max(session.context_tokens - self._paths.shared_tokens(session.id, Claim.WORKING), 0) + int(
            session.growth_tokens * self._settings.growth_turns
        )

    def join(self, session: Session) -> None:
        """The session becomes a member."""
        self._leave(session)
        session.standing = Standing.MEMBER
        self.members[session.id] = session
        self._paths.claim(Claim.WORKING, session.id)

    def visit(self, session: Session) -> None:
        """The session's waiting turns may run; it is held again once they are done."""
        self._leave(session)
        session.standing = Standing.VISITOR
        self.visitors[session.id] = session
        self._paths.claim(Claim.WORKING, session.id)

    def hold(self, session: Session) -> None:
        """The session has no right to run; where a turn of it waits, it stands in line."""
        self._leave(session)
        session.standing = Standing.HELD
        self._paths.release(Claim.WORKING, session.id)
        insort(self._held, (session.seniority, session.id))
        if session.waiting:
            self._in_line[session.id] = session
            insort(self._line, (session.seniority, session.id))

    def remove(self, session: Session) -> None:
        """The session is gone."""
        self._leave(session)
        self._paths.release(Claim.WORKING, session.id)

    def line(self) -> Iterator[Session]:
        """Held sessions with waiting turns, the eldest first. Valid until one is let in."""
        for _, session in self._line:
            yield self._in_line[session]

    def head(self) -> Session | None:
        """The eldest held session with a waiting turn."""
        return self._in_line[self._line[0][1]] if self._line else None

    def held(self) -> Iterator[str]:
        """All held sessions, whether a turn of them waits or not, the youngest first."""
        return (session for _, session in reversed(self._held))

    @property
    def num_in_line(self) -> int:
        return len(self._line)

    def has_room_to_join(self, session: Session, committed_tokens: int) -> bool:
        limit = self.capacity_tokens * self._settings.join_share
        return committed_tokens + self.needed_tokens(session) <= limit

    def has_room_to_visit(self, session: Session, committed_tokens: int) -> bool:
        return committed_tokens + self.needed_tokens(session) <= self.capacity_tokens

    def smallest_member_tokens(self) -> int:
        """The context of the smallest member, 0 without members."""
        return min((member.context_tokens for member in self.members.values()), default=0)

    def pausable(self) -> list[Session]:
        """Members at a turn boundary with a waiting turn, the youngest first."""
        waiting = [member for member in self.members.values() if member.waiting and not member.running]
        return sorted(waiting, key=lambda member: member.seniority, reverse=True)

    def check_integrity(self, sessions: Iterable[Session]) -> None:
        """Raises AssertionError naming the session whose standing disagrees with the sets."""
        everybody = list(sessions)
        for session in everybody:
            places = (session.id in self.members, session.id in self.visitors, session.id in self._in_line)
            wanted = (
                session.standing is Standing.MEMBER,
                session.standing is Standing.VISITOR,
                session.standing is Standing.HELD and bool(session.waiting),
            )
            assert places == wanted, f"{session.id} is {session.standing.value} but stands in {places}"
        held = [(each.seniority, each.id) for each in everybody if each.standing is Standing.HELD]
        assert self._held == sorted(held), "the held sessions are not in the order of their seniority"
        assert self._line == [entry for entry in self._held if entry[1] in self._in_line], "the line is out of order"

    def _to_come(self, session: Session) -> int:
        missing = session.context_tokens - self._paths.cached_tokens(session.id)
        return max(missing, 0) + int(session.growth_tokens * self._settings.growth_turns)

    def _leave(self, session: Session) -> None:
        self.members.pop(session.id, None)
        self.visitors.pop(session.id, None)
        entry = (session.seniority, session.id)
        place = bisect_left(self._held, entry)
        if self._held[place : place + 1] == [entry]:
            del self._held[place]
        if self._in_line.pop(session.id, None) is not None:
            del self._line[bisect_left(self._line, entry)]
