"""Pure-torch stand-ins for the names stock SGLang imports from `sgl_kernel` when it runs on a CPU.

The real package's CPU build is on no package index. Names, parameter names (`retrive_` included) and in-place outputs
are upstream's call sites'; the meaning is that of the CUDA or triton kernel each call site has beside it. Batches and
trees are small here (tens of rows), so Python loops over `.tolist()` beat vectorised torch where a walk is involved.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

from agentinfer.runtime.cpu.kernels.copies import copy_all_layer_kv_cache_cpu, rotate_input_ids_cpu
from agentinfer.runtime.cpu.kernels.kv_locations import (
    assign_draft_cache_locs_contiguous_cpu,
    assign_extend_cache_locs_cpu,
    assign_req_to_token_pool_cpu,
    fill_accept_out_cache_loc_cpu,
    fill_bonus_tokens_cpu,
)
from agentinfer.runtime.cpu.kernels.tree import (
    build_tree_kernel_efficient_cpu,
    reconstruct_indices_from_tree_mask,
    verify_tree_greedy_cpu,
)

# Module of the stand-in -> its functions. The contract test holds this against what the wheel imports.
SURFACE: dict[str, tuple[Callable[..., Any], ...]] = {
    "sgl_kernel": (
        assign_draft_cache_locs_contiguous_cpu,
        assign_extend_cache_locs_cpu,
        assign_req_to_token_pool_cpu,
        build_tree_kernel_efficient_cpu,
        copy_all_layer_kv_cache_cpu,
        fill_accept_out_cache_loc_cpu,
        fill_bonus_tokens_cpu,
        rotate_input_ids_cpu,
        verify_tree_greedy_cpu,
    ),
    "sgl_kernel.speculative": (reconstruct_indices_from_tree_mask,),
}

VERSION = "0+agentinfer.torch"


def real_sgl_kernel_present() -> bool:
    """Whether a `sgl_kernel` that is not ours is loaded or could be imported."""
    loaded = sys.modules.get("sgl_kernel")
    if loaded is not None:
        return getattr(loaded, "__version__", None) != VERSION
    return importlib.util.find_spec("sgl_kernel") is not None


def install() -> bool:
    """Becomes `sgl_kernel` in this process and says whether it did; never in front of a real one, once only."""
    if "sgl_kernel" in sys.modules or real_sgl_kernel_present():
        return False
    for name, functions in SURFACE.items():
        module = types.ModuleType(name, __doc__)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        vars(module).update({function.__name__: function for function in functions}, __version__=VERSION)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    return True
