"""SGLang's Python tree core, mirrored into the policy's path tree, and evicted in the policy's order.

The mirror holds what is on the device, which SGLang keeps closed under parents: a node enters when its full-attention
KV gets there (insert, or load-back from the host), is split with the engine's, and leaves when that KV does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sglang.srt.mem_cache.unified_cache.components import (
    BASE_COMPONENT_TYPE,
    ComponentType,
    EvictLayer,
    FullComponent,
)
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeCore

from agentinfer.radix_ext.paths import ROOT, PathTree


class AgentTreeCore(UnifiedTreeCore):  # type: ignore[misc]
    """`paths` belongs to the policy; only this class adds, splits and removes its nodes."""

    def __init__(self, params: Any, components: dict[Any, Any], paths: PathTree) -> None:
        self.paths = paths
        super().__init__(params, components)

    def reset(self) -> None:
        """Empties the tree. Sessions stay known to the policy; nothing of theirs is cached any more."""
        if hasattr(self, "root_node"):
            for node in reversed(self._collect_all_nodes()):  # children before parents
                if node.id in self.paths:
                    self.paths.remove(node.id)
        super().reset()

    def path_node(self, node_id: int) -> int:
        """The mirror's name of a node."""
        return ROOT if node_id == self.root_node.id else node_id

    def check_mirror(self) -> None:
        """Compares the mirror with the tree. Raises AssertionError naming the node and the difference."""
        self.paths.check_integrity()
        on_device = 0
        for node in self._collect_all_nodes():
            value = node.component_data[BASE_COMPONENT_TYPE].value
            if node is self.root_node or value is None:
                continue
            on_device += 1
            assert node.id in self.paths, f"node {node.id} is on the device but not in the mirror"
            seen = self.paths.num_tokens(node.id), self.paths.parent(node.id)
            real = len(value), self.path_node(node.parent.id)
            assert seen == real, f"node {node.id}: the mirror has (tokens, parent) {seen}, the tree {real}"
        assert len(self.paths) == on_device, f"the mirror has {len(self.paths)} nodes, the device {on_device}"

    def sanity_check(self, *args: Any, **kwargs: Any) -> None:
        """As upstream's, which runs when the engine is idle; with the mirror."""
        super().sanity_check(*args, **kwargs)
        self.check_mirror()

    def commit_load_back(self, node_id: int, device_indices: Any, kv_xfer: Any, comp_xfers: Any) -> Any:
        actions = super().commit_load_back(node_id, device_indices, kv_xfer, comp_xfers)
        for each in kv_xfer.nodes_to_load or ():  # parents first
            self._mirror(self.node_by_id(each))
        return actions

    def _add_new_node(self, *args: Any, **kwargs: Any) -> Any:
        node = super()._add_new_node(*args, **kwargs)
        self._mirror(node)
        return node

    def _unevict_node_on_insert(self, node: Any, *args: Any, **kwargs: Any) -> None:
        super()._unevict_node_on_insert(node, *args, **kwargs)
        self._mirror(node)

    def _split_node(self, key: Any, child: Any, split_len: int) -> Any:
        result = super()._split_node(key, child, split_len)
        if child.id in self.paths:
            self.paths.split(child.id, child.parent.id, split_len)
        return result

    def _evict_component_and_detach_lru(
        self,
        node: Any,
        comp: Any,
        device_frees: Any,
        host_frees: Any,
        target: Any = EvictLayer.DEVICE,
        tracker: Any = None,
    ) -> tuple[int, int]:
        freed: tuple[int, int] = super()._evict_component_and_detach_lru(
            node, comp, device_frees, host_frees, target, tracker
        )
        if freed[0] and comp.component_type == BASE_COMPONENT_TYPE:
            self.paths.remove(node.id)
        return freed

    def _mirror(self, node: Any) -> None:
        value = node.component_data[BASE_COMPONENT_TYPE].value
        if value is not None and node.id not in self.paths:
            self.paths.add(node.id, self.path_node(node.parent.id), len(value))


class AgentFullComponent(FullComponent):  # type: ignore[misc]
    """Full-attention KV whose leaves leave the device in the policy's order; `cache.book` knows that order."""

    component_type = ComponentType.FULL

    def __init__(self, cache: Any, params: Any) -> None:
        super().__init__(cache, params)
        self.num_unordered = 0
        """Leaves evicted in upstream's order because the policy offered no more: 0 unless the two disagree."""
        self._victims: Iterator[int] | None = None

    def _evict_device_start(self, request_cnt: int) -> None:
        self._evict_device_request_cnt = request_cnt
        self._victims = self.cache.book.victims()

    def _evict_device_next_node(self, tracker: Any, device_frees: Any, host_frees: Any) -> int | None:
        leaves = self.tree_core.evictable_device_leaves
        while self._victims is not None and tracker[self.component_type] < self._evict_device_request_cnt:
            node_id = next(self._victims, None)
            if node_id is None:
                # The policy orders; it has no veto.
                self._victims = None
                super()._evict_device_start(self._evict_device_request_cnt)
            elif self.tree_core.node_by_id(node_id) in leaves:
                return node_id
        if self._victims is not None:
            return None
        unordered: int | None = super()._evict_device_next_node(tracker, device_frees, host_frees)
        self.num_unordered += unordered is not None
        return unordered

    def _evict_device_end(self) -> None:
        close = getattr(self._victims, "close", None)
        if close is not None:
            close()  # a generator hands back what it had set aside
        self._victims = None
        super()._evict_device_end()
