"""Draft trees: from a mask or a beam to links, positions and masks, and the greedy walk that accepts a path.

A tree of n nodes is numbered parents before children, node 0 the last committed token. It travels as
`retrive_next_token` (first child), `retrive_next_sibling` (next child of the same parent), both -1 for none, and
`retrive_index`, the node's row in the flattened batch.
"""

from __future__ import annotations

import numpy as np
import torch

QLEN_ONLY = 1  # TreeMaskMode of sglang.srt.speculative.eagle_utils: the mask covers the tree, not the prefix


def reconstruct_indices_from_tree_mask(
    tree_mask: torch.Tensor,
    verified_seq_len: torch.Tensor,
    positions: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
) -> None:
    """From ancestor masks [batch, n, n] (True: the column is the row's ancestor or itself) to positions and links."""
    num_nodes = draft_token_num
    mask = tree_mask.numpy().reshape(batch_size, num_nodes, num_nodes).astype(bool)
    order = np.arange(num_nodes)
    ancestors = mask & (order < order[:, None])
    depths = ancestors.sum(-1)
    # Numbered parents first, the nearest ancestor is the one with the highest number.
    parents = np.where(ancestors.any(-1), num_nodes - 1 - np.argmax(ancestors[:, :, ::-1], axis=-1), -1)
    positions.copy_(torch.from_numpy((depths + verified_seq_len.numpy().reshape(batch_size, 1)).reshape(-1)))
    _write_links(parents.tolist(), retrive_index, retrive_next_token, retrive_next_sibling)


def build_tree_kernel_efficient_cpu(
    parent_list: torch.Tensor,
    selected_index: torch.Tensor,
    verified_seq_len: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """From a draft model's beam to mask, positions and links, in place.

    `selected_index[b]` holds, ascending, the beam slots that became nodes 1..n-1; slot s hangs below beam entry s //
    topk, whose own slot is `parent_list[b, s // topk]`, entry 0 being the root.
    """
    if int(tree_mask_mode) != QLEN_ONLY:
        raise NotImplementedError(
            f"tree_mask_mode={tree_mask_mode}: on the CPU only QLEN_ONLY ({QLEN_ONLY}) is built, which is what "
            "sglang.srt.speculative chooses there"
        )
    num_nodes, batch_size = draft_token_num, verified_seq_len.shape[0]
    mask = np.zeros((batch_size, num_nodes, num_nodes), dtype=bool)
    depths = np.zeros((batch_size, num_nodes), dtype=np.int64)
    parents = [
        _parents_from_beam(beam, selected, topk)
        for beam, selected in zip(parent_list.tolist(), selected_index.tolist(), strict=True)
    ]
    for request, parent_of in enumerate(parents):
        for node in range(num_nodes):
            mask[request, node, node] = True
            parent = parent_of[node]
            if parent >= 0:
                mask[request, node] |= mask[request, parent]
                depths[request, node] = depths[request, parent] + 1
    tree_mask.view(-1)[: mask.size].copy_(torch.from_numpy(mask.reshape(-1)))
    positions.copy_(torch.from_numpy((depths + verified_seq_len.numpy().reshape(batch_size, 1)).reshape(-1)))
    _write_links(parents, retrive_index, retrive_next_token, retrive_next_sibling)


def verify_tree_greedy_cpu(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> None:
    """Walks each tree along the target model's own choices, in place.

    `accept_index[b]` receives the flat rows of the accepted path, node 0 first; what lies behind stays as it was.
    `accept_token_num[b]` counts the accepted drafts, node 0 not among them. `predicts` receives, at each row of the
    path, the target's next token there: the accepted draft, and at the end the bonus token.
    """
    batch_size, max_path = accept_index.shape
    drafts, flat_rows = candidates.tolist(), retrive_index.tolist()
    first_child, next_sibling = retrive_next_token.tolist(), retrive_next_sibling.tolist()
    wanted = target_predict.flatten().tolist()
    for request in range(batch_size):
        node, path = 0, [flat_rows[request][0]]
        while len(path) < max_path:
            child = first_child[request][node]
            while child != -1 and drafts[request][child] != wanted[path[-1]]:
                child = next_sibling[request][child]
            if child == -1:
                break
            node = child
            path.append(flat_rows[request][node])
        accept_token_num[request] = len(path) - 1
        for step, row in enumerate(path):
            accept_index[request, step] = row
            predicts[row] = wanted[row]


def _parents_from_beam(beam_parents: list[int], selected: list[int], topk: int) -> list[int]:
    node_of_slot = {slot: node for node, slot in enumerate(selected, start=1)}
    parents = [-1]
    for slot in selected:
        entry = slot // topk
        parents.append(0 if entry == 0 else node_of_slot[beam_parents[entry]])
    return parents


def _write_links(
    parents: list[list[int]], retrive_index: torch.Tensor, next_token: torch.Tensor, next_sibling: torch.Tensor
) -> None:
    batch_size, num_nodes = len(parents), len(parents[0]) if parents else 0
    child = np.full((batch_size, num_nodes), -1, dtype=np.int64)
    sibling = np.full((batch_size, num_nodes), -1, dtype=np.int64)
    for request, parent_of in enumerate(parents):
        # Descending, so that a parent ends up pointing at its lowest-numbered child.
        for node in range(num_nodes - 1, 0, -1):
            parent = parent_of[node]
            if parent >= 0:
                sibling[request, node] = child[request, parent]
                child[request, parent] = node
    retrive_index.copy_(torch.arange(batch_size * num_nodes).view(batch_size, num_nodes))
    next_token.copy_(torch.from_numpy(child))
    next_sibling.copy_(torch.from_numpy(sibling))
