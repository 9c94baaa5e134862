"""SGLang's unified radix cache, told whose context each request's is and what becomes of requests.

Every request passes here when its prompt is computed, when it ends, and when it is aborted or retracted, whichever way
it came; so the cache is where the turns' ends are seen.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import CacheRequestOutcome
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.utils.rank_consensus_checker import rank_consensus

from agentinfer.radix_ext.paths import ROOT
from agentinfer.runtime.scheduling.book import TurnBook
from agentinfer.runtime.scheduling.tree_core import AgentFullComponent, AgentTreeCore

TREE_CORE = "agentinfer"


def register_tree_core() -> None:
    """Makes our tree core known to SGLang, once a process."""
    from sglang.srt.mem_cache.unified_cache.tree_core_registry import get_tree_core_factory, register_tree_core_backend

    if get_tree_core_factory(TREE_CORE) is None:
        register_tree_core_backend(TREE_CORE, _make_tree_core)


def _make_tree_core(params: Any, components: dict[Any, Any]) -> AgentTreeCore:
    return AgentTreeCore(params, components, components[ComponentType.FULL].cache.paths)


class AgentRadixCache(UnifiedRadixCache):  # type: ignore[misc]
    """A `UnifiedRadixCache` that evicts in `book`'s policy's order and places sessions on its path tree."""

    def __init__(self, params: Any, book: TurnBook) -> None:
        self.book = book
        self.paths = book.policy.paths
        self._inserted_node: int | None = None
        params.tree_core_backend = TREE_CORE
        params.component_registry_override = {
            **(params.component_registry_override or {}),
            ComponentType.FULL: AgentFullComponent,
        }
        super().__init__(params)

    @property
    def num_unordered_evictions(self) -> int:
        return int(self.components[ComponentType.FULL].num_unordered)

    def insert(self, params: Any) -> Any:
        result = super().insert(params)
        if self._inserted_node is None:
            self._inserted_node = result.last_device_node
        return result

    def insert_req(self, req: Any, *, up_to: int, **kwargs: Any) -> None:
        # Upstream inserts the whole context first, and then its prompt again in order to split the leaf there.
        self._inserted_node = None
        super().insert_req(req, up_to=up_to, **kwargs)
        if self._inserted_node is not None:
            self._place(req, self._inserted_node)

    def cache_unfinished_req(self, req: Any, chunked: bool = False, **kwargs: Any) -> None:
        super().cache_unfinished_req(req, chunked=chunked, **kwargs)
        if req.last_node is not None:
            self._place(req, req.last_node)

    def on_release(self, req: Any, *, inserted: bool) -> None:
        super().on_release(req, inserted=inserted)
        self.book.released(req)

    def finish(self, handle: Any, outcome: Any) -> None:
        super().finish(handle, outcome)
        if outcome == CacheRequestOutcome.ABORT:
            self.book.dropped(handle.rid)

    @rank_consensus(same_params=["node_id"])  # type: ignore[untyped-decorator]
    def _evict_device_leaf(self, node_id: int, tracker: Any) -> Any:
        # Compared between ranks where SGLang is told to, as it compares what is inserted and how much is evicted.
        return super()._evict_device_leaf(node_id, tracker)

    def _place(self, req: Any, node_id: int) -> None:
        session = self.book.session_of(req)
        node = self.tree_core.path_node(node_id)
        if session is None or (node != ROOT and node not in self.paths):
            return
        self.paths.place(session, node)
        while node != ROOT:
            self.paths.touch(node)
            node = self.paths.parent(node)
