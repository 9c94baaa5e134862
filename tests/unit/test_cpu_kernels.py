"""Every stand-in for an `sgl_kernel` op, and the paging and HiCache ones, against loops that are obviously right."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentinfer.runtime.cpu import hicache, kernels, paging
from agentinfer.runtime.cpu.kernels import copies, kv_locations, tree

POOL_LEN = 24

# Table rows, and a [start, end) in each.
Spans = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@st.composite
def spans(draw: st.DrawFn) -> Spans:
    """Distinct table rows with a [start, end) each, empty ones among them."""
    rows = draw(st.lists(st.integers(0, 7), min_size=1, max_size=5, unique=True))
    bounds = [sorted((draw(st.integers(0, POOL_LEN)), draw(st.integers(0, POOL_LEN)))) for _ in rows]
    starts, ends = zip(*bounds, strict=True)
    return torch.tensor(rows), torch.tensor(starts), torch.tensor(ends)


def table() -> torch.Tensor:
    return torch.arange(8 * POOL_LEN, dtype=torch.int32).view(8, POOL_LEN)


@given(spans())
def test_assign_req_to_token_pool_writes_consecutive_pieces(
    span: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    rows, starts, ends = span
    total = int((ends - starts).sum())
    slots = torch.arange(1000, 1000 + total)
    expected, seen = table(), table()
    source = iter(slots.tolist())
    for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
        for column in range(start, end):
            expected[row, column] = next(source)
    kv_locations.assign_req_to_token_pool_cpu(rows, seen, starts, ends, slots, POOL_LEN)
    assert torch.equal(seen, expected)


@given(spans(), st.integers(0, 3))
def test_assign_extend_cache_locs_reads_consecutive_pieces_and_leaves_the_rest(span: Spans, spare: int) -> None:
    rows, starts, ends = span
    expected = [
        int(table()[row, column])
        for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True)
        for column in range(start, end)
    ]
    seen = torch.full((len(expected) + spare,), -7)
    kv_locations.assign_extend_cache_locs_cpu(rows, table(), starts, ends, seen, POOL_LEN)
    assert seen.tolist() == expected + [-7] * spare


def test_assign_draft_cache_locs_reads_the_slots_behind_each_sequence() -> None:
    seen = torch.zeros(2 * 6, dtype=torch.int64)
    kv_locations.assign_draft_cache_locs_contiguous_cpu(
        torch.tensor([3, 1]), table(), torch.tensor([5, 0]), seen, POOL_LEN, 2, 3
    )
    assert seen.tolist() == table()[3, 5:11].tolist() + table()[1, 0:6].tolist()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_fill_bonus_tokens_takes_the_last_accepted(accept_lens: list[int]) -> None:
    stride = 4
    tokens = torch.arange(100, 100 + stride * len(accept_lens), dtype=torch.int32).view(-1, stride)
    bonus = torch.zeros(len(accept_lens), dtype=torch.int32)
    kv_locations.fill_bonus_tokens_cpu(tokens, torch.tensor(accept_lens, dtype=torch.int32), bonus, stride)
    assert bonus.tolist() == [int(tokens[row, length - 1]) for row, length in enumerate(accept_lens)]


@given(st.lists(st.integers(-1, 9), min_size=1, max_size=12))
def test_fill_accept_out_cache_loc_packs_accepted_slots(accept_index: list[int]) -> None:
    slots = torch.arange(500, 510)
    seen = torch.full((len(accept_index),), -7)
    kv_locations.fill_accept_out_cache_loc_cpu(torch.tensor(accept_index), slots, seen)
    packed = [500 + index for index in accept_index if index >= 0]
    assert seen.tolist() == packed + [-7] * (len(accept_index) - len(packed))


@given(st.data())
def test_copy_all_layer_kv_cache_copies_as_if_all_reads_came_first(data: st.DataObject) -> None:
    num_rows = 9
    sources = data.draw(st.lists(st.integers(0, num_rows - 1), min_size=0, max_size=6))
    targets = data.draw(st.permutations(range(num_rows)))[: len(sources)]
    # float32 rows of 12 bytes beside bfloat16 rows of 10: strides differ between buffers.
    buffers = [torch.randn(num_rows, 3), torch.randn(num_rows, 5).bfloat16()]
    expected = [buffer.clone() for buffer in buffers]
    for old, new in zip(buffers, expected, strict=True):
        for target, source in zip(targets, sources, strict=True):
            new[target] = old[source]
    copies.copy_all_layer_kv_cache_cpu(
        torch.tensor([b.data_ptr() for b in buffers], dtype=torch.uint64),
        torch.tensor([b[0].numel() * b.element_size() for b in buffers]),
        torch.tensor(targets, dtype=torch.int64),
        torch.tensor(sources, dtype=torch.int64),
    )
    for seen, want in zip(buffers, expected, strict=True):
        assert torch.equal(seen, want)


@pytest.mark.parametrize("select", [None, [1, 4]], ids=["last", "selected"])
def test_rotate_input_ids_shifts_each_request_and_skips_empty_ones(select: list[int] | None) -> None:
    ids = torch.tensor([10, 11, 12, 20, 21])
    starts, lens = torch.tensor([0, 3, 3]), torch.tensor([3, 0, 2])
    index = None if select is None else torch.tensor([select[0], 99, select[1]])
    copies.rotate_input_ids_cpu(ids, starts, lens, torch.tensor([[7], [8], [9]]), index)
    assert ids.tolist() == ([11, 12, 7, 21, 9] if select is None else [11, 7, 12, 21, 9])


# --- trees ------------------------------------------------------------------------------------------------------


def parents_lists(max_nodes: int = 9) -> st.SearchStrategy[list[int]]:
    """parents[i] < i for each node but the root, whose parent is -1."""
    return st.integers(1, max_nodes).flatmap(
        lambda n: st.tuples(*(st.integers(0, i - 1) for i in range(1, n))).map(lambda tail: [-1, *tail])
    )


def ancestors_or_self(parents: list[int], node: int) -> list[int]:
    path = [node]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path


def mask_of(parents: list[int]) -> torch.Tensor:
    mask = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for node in range(len(parents)):
        mask[node, ancestors_or_self(parents, node)] = True
    return mask


def children_by_links(first_child: list[int], next_sibling: list[int], node: int) -> list[int]:
    children, child = [], first_child[node]
    while child != -1:
        children.append(child)
        child = next_sibling[child]
    return children


def blank_links(batch: int, num_nodes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    index, child, sibling = torch.full((3, batch, num_nodes), -9)
    return index, child, sibling


def check_tree(
    parents: list[int],
    prefix: int,
    positions: list[int],
    index: list[int],
    child: list[int],
    sibling: list[int],
    first_row: int,
) -> None:
    num_nodes = len(parents)
    for node in range(num_nodes):
        assert positions[node] == prefix + len(ancestors_or_self(parents, node)) - 1
        assert children_by_links(child, sibling, node) == [c for c in range(num_nodes) if parents[c] == node]
    assert index == list(range(first_row, first_row + num_nodes))


@given(st.lists(parents_lists(6), min_size=1, max_size=3).filter(lambda trees: len({len(t) for t in trees}) == 1))
def test_reconstruct_indices_from_tree_mask(trees: list[list[int]]) -> None:
    batch, num_nodes = len(trees), len(trees[0])
    prefixes = torch.arange(5, 5 + batch)
    positions = torch.zeros(batch * num_nodes, dtype=torch.int64)
    index, child, sibling = blank_links(batch, num_nodes)
    mask = torch.stack([mask_of(t) for t in trees]).flatten()
    tree.reconstruct_indices_from_tree_mask(mask, prefixes, positions, index, child, sibling, batch, num_nodes)
    for b, parents in enumerate(trees):
        own = positions.view(batch, -1)[b].tolist()
        check_tree(parents, 5 + b, own, index[b].tolist(), child[b].tolist(), sibling[b].tolist(), b * num_nodes)


@given(st.integers(1, 3), st.integers(1, 4), st.data())
def test_build_tree_from_beam(topk: int, depth: int, data: st.DataObject) -> None:
    # As a draft model expands: topk slots below the root, then at each step topk children for each of topk kept slots.
    # A slot may be selected only if its parent is.
    slot_parent: dict[int, int | None] = dict.fromkeys(range(topk))
    beam_parents = [-1]
    latest = list(range(topk))
    next_slot = topk
    for _ in range(1, depth):
        kept = sorted(data.draw(st.permutations(latest))[:topk])
        beam_parents += kept
        latest = []
        for parent in kept:
            for _ in range(topk):
                slot_parent[next_slot] = parent
                latest.append(next_slot)
                next_slot += 1
    wanted = data.draw(st.sets(st.sampled_from(sorted(slot_parent)), min_size=1, max_size=5))
    selected = set()
    for slot in wanted:
        while slot is not None:
            selected.add(slot)
            slot = slot_parent[slot]
    order = sorted(selected)
    node_of = {slot: i for i, slot in enumerate(order, start=1)}
    parents = [-1] + [0 if slot_parent[s] is None else node_of[slot_parent[s]] for s in order]  # type: ignore[index]

    num_nodes = len(parents)
    mask = torch.zeros(num_nodes * num_nodes, dtype=torch.bool)
    positions = torch.zeros(num_nodes, dtype=torch.int64)
    index, child, sibling = blank_links(1, num_nodes)
    tree.build_tree_kernel_efficient_cpu(
        torch.tensor([beam_parents]), torch.tensor([order]), torch.tensor([40]), mask, positions, index, child, sibling,
        topk, depth, num_nodes, tree.QLEN_ONLY,
    )  # fmt: skip
    assert torch.equal(mask.view(num_nodes, num_nodes), mask_of(parents))
    check_tree(parents, 40, positions.tolist(), index[0].tolist(), child[0].tolist(), sibling[0].tolist(), 0)


def test_build_tree_refuses_masks_over_the_prefix() -> None:
    blank = torch.zeros(1)
    with pytest.raises(NotImplementedError, match="tree_mask_mode=0"):
        tree.build_tree_kernel_efficient_cpu(blank, blank, blank, blank, blank, blank, blank, blank, 1, 1, 1, 0)


def accepted_path(parents: list[int], drafts: list[int], wanted: list[int], max_path: int) -> list[int]:
    """By brute force: the longest root path each of whose drafts is what the target wants at its parent."""
    best = [0]
    for node in range(len(parents)):
        path = ancestors_or_self(parents, node)[::-1]
        follows = all(drafts[c] == wanted[p] for p, c in itertools.pairwise(path))
        if follows and len(best) < len(path) <= max_path:
            best = path
    return best


@settings(max_examples=300)
@given(parents_lists(), st.data())
def test_verify_tree_greedy_accepts_the_longest_matching_path(parents: list[int], data: st.DataObject) -> None:
    num_nodes, max_path = len(parents), data.draw(st.integers(1, 5))
    wanted = data.draw(st.lists(st.integers(0, 2), min_size=num_nodes, max_size=num_nodes))
    drafts = data.draw(st.lists(st.integers(0, 2), min_size=num_nodes, max_size=num_nodes))
    for node in range(1, num_nodes):  # siblings differ, as a draft tree never offers a token twice below one node
        taken = {drafts[s] for s in range(1, node) if parents[s] == parents[node]}
        drafts[node] = next(t for t in itertools.count(drafts[node]) if t not in taken)

    # Two copies in one batch, to see that rows are offset.
    index, child, sibling = blank_links(2, num_nodes)
    mask = torch.stack([mask_of(parents)] * 2).flatten()
    tree.reconstruct_indices_from_tree_mask(
        mask, torch.tensor([0, 0]), torch.zeros(2 * num_nodes, dtype=torch.int64), index, child, sibling, 2, num_nodes
    )
    predicts = torch.full((2 * num_nodes,), -5, dtype=torch.int32)
    accept_index = torch.full((2, max_path), -1, dtype=torch.int32)
    accept_num = torch.zeros(2, dtype=torch.int32)
    tree.verify_tree_greedy_cpu(
        predicts=predicts,
        accept_index=accept_index,
        accept_token_num=accept_num,
        candidates=torch.tensor([drafts, drafts]),
        retrive_index=index,
        retrive_next_token=child,
        retrive_next_sibling=sibling,
        target_predict=torch.tensor([wanted, wanted]),
    )
    path = accepted_path(parents, drafts, wanted, max_path)
    for b in range(2):
        rows = [b * num_nodes + node for node in path]
        assert accept_index[b].tolist() == rows + [-1] * (max_path - len(path))
        assert int(accept_num[b]) == len(path) - 1
        assert [int(predicts[row]) for row in rows] == [wanted[node] for node in path]
    assert int((predicts == -5).sum()) == 2 * (num_nodes - len(path))


# --- page allocation and HiCache --------------------------------------------------------------------------------


def slots_by_hand(prefix: int, total: int, last_slot: int, fresh_pages: list[int], page_size: int) -> list[int]:
    """Token by token: a token at a page boundary opens the next fresh page, any other takes the slot after the last."""
    slots = []
    for position in range(prefix, total):
        last_slot = fresh_pages.pop(0) * page_size if position % page_size == 0 else last_slot + 1
        slots.append(last_slot)
    return slots


@st.composite
def paged_requests(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int]], list[int]]:
    """(page size, [(prefix, total, slot of the prefix's last token)], free pages); prefixes live on pages below 100."""
    page_size = draw(st.sampled_from([1, 2, 4, 16]))
    requests = []
    for number in range(draw(st.integers(1, 4))):
        prefix = draw(st.integers(0, 3 * page_size))
        total = prefix + draw(st.integers(0, 3 * page_size))
        last = -1 if prefix == 0 else (10 * number + 1) * page_size + (prefix - 1) % page_size
        requests.append((prefix, total, last))
    free = draw(st.permutations(range(100, 120)))
    return page_size, requests, list(free)


@pytest.mark.sglang
@settings(deadline=None)  # the first call imports sglang
@given(paged_requests())
def test_alloc_extend_fills_pages_in_order(case: tuple[int, list[tuple[int, int, int]], list[int]]) -> None:
    page_size, requests, free = case
    expected, pages = [], list(free)
    for prefix, total, last in requests:
        expected += slots_by_hand(prefix, total, last, pages, page_size)
    prefixes, totals, lasts = (torch.tensor(column) for column in zip(*requests, strict=True))
    seen = torch.full((len(expected),), -1)
    paging.alloc_extend(prefixes, totals, lasts, torch.tensor(free), seen, 8, page_size)
    assert seen.tolist() == expected


@given(paged_requests())
def test_alloc_decode_takes_the_next_slot_or_a_fresh_page(
    case: tuple[int, list[tuple[int, int, int]], list[int]],
) -> None:
    page_size, requests, free = case
    expected, pages = [], list(free)
    for prefix, _, last in requests:
        expected += slots_by_hand(prefix, prefix + 1, last, pages, page_size)
    seq_lens = torch.tensor([prefix + 1 for prefix, _, _ in requests])
    seen = torch.full((len(expected),), -1)
    paging.alloc_decode(
        seq_lens, torch.tensor([last for _, _, last in requests]), torch.tensor(free), seen, 8, page_size
    )
    assert seen.tolist() == expected


@pytest.mark.sglang
def test_allocation_leaves_the_output_alone_when_pages_run_out() -> None:
    seen = torch.full((8,), -1)
    paging.alloc_extend(torch.tensor([0]), torch.tensor([8]), torch.tensor([-1]), torch.tensor([5]), seen, 1, 4)
    paging.alloc_decode(torch.tensor([5, 5]), torch.tensor([3, 7]), torch.tensor([5]), seen[:2], 2, 4)
    assert seen.tolist() == [-1] * 8


def test_launchable_starts_as_a_triton_kernel_does() -> None:
    calls: list[tuple[int, ...]] = []
    paging.Launchable(lambda *args: calls.append(args))[(4,)](1, 2)
    assert calls == [(1, 2)]


def test_transfer_kv_direct_copies_rows_of_each_layer() -> None:
    sources = [torch.randn(6, 2, 3) for _ in range(2)]
    targets = [torch.zeros(8, 2, 3) for _ in range(2)]
    hicache.transfer_kv_direct(sources, targets, torch.tensor([4, 0, 5]), torch.tensor([1, 7, 2]), page_size=1)
    for source, target in zip(sources, targets, strict=True):
        expected = torch.zeros(8, 2, 3)
        for a, b in ((4, 1), (0, 7), (5, 2)):
            expected[b] = source[a]
        assert torch.equal(target, expected)


def test_surface_names_each_function_once_a_module() -> None:
    for functions in kernels.SURFACE.values():
        names = [function.__name__ for function in functions]
        assert len(names) == len(set(names))
