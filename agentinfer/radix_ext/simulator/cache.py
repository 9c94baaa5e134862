"""The simulated prefix cache: a policy's path tree holds the cached tokens, running turns lock the path they build on.

        [0, base)        in the tree, locked from the turn's start
        [base, prompt)   the turn's own until it ends: computed, or brought back from the host tier
        [prompt, ...)    the turn's own: what it said so far
    free = capacity - tree - own tokens of all running turns

A turn's own tokens become a leaf when it ends. Shared segments become nodes, found by key, once they are prefilled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentinfer.radix_ext.paths import ROOT, PathTree
from agentinfer.radix_ext.simulator.host import HostTier
from agentinfer.radix_ext.simulator.workload import SharedSegment


class SimCache:
    """`paths` belongs to the policy, which reads it; only this class changes its nodes."""

    def __init__(self, capacity_tokens: int, paths: PathTree, host: HostTier) -> None:
        self.capacity_tokens = capacity_tokens
        self.paths = paths
        self.host = host
        self.tree_tokens = 0
        self.locked_tokens = 0
        self.own_tokens = 0
        self.evicted_tokens = 0
        self._locks: dict[int, int] = {}
        self._shared: dict[tuple[str, ...], int] = {}
        self._keys: dict[int, tuple[str, ...]] = {}
        self._nodes: set[int] = set()
        self._ids = 0

    @property
    def free_tokens(self) -> int:
        return self.capacity_tokens - self.tree_tokens - self.own_tokens

    @property
    def evictable_tokens(self) -> int:
        return self.tree_tokens - self.locked_tokens

    def match(self, session: str, shared: Sequence[SharedSegment]) -> int:
        """The deepest cached node of the session's context, in which it is placed; `ROOT` when nothing is cached.

        `shared` is as much of the context's shared start as its next prompt keeps.
        """
        node = self.paths.frontier(session)
        key: tuple[str, ...] = ()
        end = 0
        found = ROOT
        for segment in shared:
            end += segment.num_tokens
            key = (*key, segment.key)
            if key not in self._shared:
                break
            if end > self.paths.end(node):
                found = self._shared[key]
        if found != ROOT:
            self.paths.place(session, found)
            node = found
        return node

    def cut(self, session: str, kept_tokens: int) -> None:
        """The session's context goes on differently after `kept_tokens`."""
        paths = self.paths
        self.host.cut(session, kept_tokens)
        node = paths.frontier(session)
        if node == ROOT or paths.end(node) <= kept_tokens:
            return
        while node != ROOT and paths.end(node) > kept_tokens:
            start = paths.end(node) - paths.num_tokens(node)
            if start < kept_tokens:
                upper = self._new_id()
                paths.split(node, upper, kept_tokens - start)
                if node in self._locks:
                    self._locks[upper] = 1
                node = upper
            else:
                node = paths.parent(node)
        paths.place(session, node)

    def lock(self, node: int) -> None:
        """A turn builds on the path to `node`: none of it can be evicted."""
        paths = self.paths
        while node != ROOT:
            count = self._locks.get(node, 0)
            self._locks[node] = count + 1
            if count:
                return  # what is above is locked through this node already
            self.locked_tokens += paths.num_tokens(node)
            node = paths.parent(node)

    def unlock(self, node: int) -> None:
        paths = self.paths
        while node != ROOT:
            count = self._locks[node] - 1
            if count:
                self._locks[node] = count
                return
            del self._locks[node]
            self.locked_tokens -= paths.num_tokens(node)
            node = paths.parent(node)

    def make_room(self, num_tokens: int, victims: Iterator[int]) -> bool:
        """Evicts in the order of `victims` until so many tokens are free. False when locked tokens leave too few."""
        if self.free_tokens >= num_tokens:
            return True
        for node in victims:
            if node in self._locks:
                continue
            self._evict(node)
            if self.free_tokens >= num_tokens:
                return True
        return False

    def insert_shared(self, session: str, node: int, shared: Sequence[SharedSegment]) -> int:
        """A turn that builds on the locked `node` has prefilled its shared start; returns what it builds on now.

        Where another turn was first, the turn's own copy is freed.
        """
        key: tuple[str, ...] = ()
        end = 0
        for segment in shared:
            end += segment.num_tokens
            key = (*key, segment.key)
            base = self.paths.end(node)
            if end <= base:
                continue
            deeper = self._shared.get(key)
            if deeper is None:
                deeper = self._add(node, end - base)
                self._shared[key] = deeper
                self._keys[deeper] = key
            self.own_tokens -= end - base
            self.lock(deeper)
            self.unlock(node)
            node = deeper
        self.paths.place(session, node)
        return node

    def insert(self, session: str, node: int, end: int, own_tokens: int) -> None:
        """A turn lets go of the locked `node` and of its own tokens; of its context, `end` tokens stay cached.

        The session is placed at their end.
        """
        base = self.paths.end(node)
        self.own_tokens -= own_tokens
        if end > base:
            leaf = self._add(node, end - base)
            self.paths.place(session, leaf)
        else:
            self.paths.place(session, node)
        self.unlock(node)

    def forget(self, session: str) -> None:
        """The session has ended."""
        self.host.release(session)
        self.paths.forget(session)

    def check_integrity(self, locked: Sequence[int]) -> None:
        """Recounts everything; `locked` are the nodes that running turns build on. Raises AssertionError."""
        assert self.free_tokens >= 0, f"{-self.free_tokens} tokens more than the cache holds"
        self.paths.check_integrity()
        self.host.check_integrity()
        paths = self.paths
        wanted: set[int] = set()
        for node in locked:
            while node != ROOT:
                wanted.add(node)
                node = paths.parent(node)
        assert set(self._locks) == wanted, f"locked {sorted(self._locks)}, expected {sorted(wanted)}"
        recounted = sum(paths.num_tokens(node) for node in wanted)
        assert self.locked_tokens == recounted, f"{self.locked_tokens} tokens locked, recounted {recounted}"
        assert len(paths) == len(self._nodes), f"{len(paths)} nodes in the tree, {len(self._nodes)} known"
        assert self.tree_tokens == sum(map(paths.num_tokens, self._nodes)), "the tree's tokens are miscounted"
        assert {node: key for key, node in self._shared.items()} == self._keys, "shared nodes and keys disagree"
        assert all(node in paths for node in self._keys), "a key names an evicted node"

    def _add(self, parent: int, num_tokens: int) -> int:
        node = self._new_id()
        self.paths.add(node, parent, num_tokens)
        self.tree_tokens += num_tokens
        return node

    def _evict(self, node: int) -> None:
        paths = self.paths
        num_tokens = paths.num_tokens(node)
        if self.host.capacity_tokens:
            end = paths.end(node)
            self.host.offload(end - num_tokens, end, paths.sessions_at(node))
        key = self._keys.pop(node, None)
        if key is not None:
            del self._shared[key]
        paths.remove(node)
        self._nodes.remove(node)
        self.tree_tokens -= num_tokens
        self.evicted_tokens += num_tokens

    def _new_id(self) -> int:
        self._ids += 1
        self._nodes.add(self._ids)
        return self._ids
