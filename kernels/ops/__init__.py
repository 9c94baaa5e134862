"""Ops around one speculative step: verification of drafts, chain or tree, and the layout of draft trees.

Source in `kernels/ops` of the repository, reached through the link `agentinfer/kernels`. The repository's root can be
on `sys.path`, where a package named `kernels` would hide the one SGLang and transformers load FlashAttention with.
"""

from agentinfer.kernels.sampling_weights import Sampling, sampling_weights
from agentinfer.kernels.tree import KernelInputError, TreeLayout, Verified, is_chain
from agentinfer.kernels.tree_layout import tree_layout
from agentinfer.kernels.verify_greedy import verify_greedy
from agentinfer.kernels.verify_sampled import verify_sampled, verify_sampled_logits

__all__ = [
    "KernelInputError",
    "Sampling",
    "TreeLayout",
    "Verified",
    "is_chain",
    "sampling_weights",
    "tree_layout",
    "verify_greedy",
    "verify_sampled",
    "verify_sampled_logits",
]
