"""How two engines divide GPUs, their memory, and the cores of a machine without one. Pure.

SGLang 0.5.21 reads ``--mem-fraction-static`` as a share of what is free on the GPU when the engine has joined its
process group and loads nothing yet (`distributed/bootstrap.py`, `measure_pre_model_load_memory`), not of the GPU. It
then gives the KV cache what is free after loading, less ``(1 - fraction)`` of that first figure
(`mem_cache/kv_cache_configurator.py`, `_profile_available_bytes`). So weights and KV cache take ``fraction x free``,
and CUDA graphs and activations come on top. Three things follow: a fraction means something only at a known moment, so
the engines of one GPU start one after the other; what is planned is bytes, which become a fraction when an engine
starts; and an engine that is started again, beside the other's full cache, gets another fraction for the same bytes.

Without a GPU the KV cache is bounded by ``--max-total-tokens``, and our platform's default takes a quarter of what is
free, so two fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agentinfer.collab_lang.virtual_model.addresses import Role
from agentinfer.errors import ConfigError

GIB: Final = 2**30
_MIB: Final = 2**20

# A share of the free memory that no engine may be given: the driver keeps some, and free memory is read a moment early.
_MARGIN = 0.01

# Two KV caches that together get less than this share of the free memory serve nobody.
_LEAST_KV_SHARE = 0.02

# By GPU memory up to so many GiB: the tokens of a prefill chunk and the rows of a decode batch that SGLang chooses
# (`arg_groups/memory_hook.py`), by which it reckons activations and CUDA graphs.
_CHUNKS_AND_ROWS = ((20, 2_048, 8), (35, 4_096, 48), (60, 4_096, 32), (160, 8_192, 256), (math.inf, 16_384, 512))


@dataclass(frozen=True, slots=True)
class Needs:
    """What an engine takes on each of its GPUs. `weights_bytes` and `kv_bytes_a_token` None: not known.

    `working_bytes`: CUDA graphs and activations, beside weights and KV cache. `fraction`: as the user gave it.
    """

    weights_bytes: int | None
    kv_bytes_a_token: int | None
    working_bytes: int
    fraction: float | None = None


def gpu_ids(first: int, count: int, step: int = 1) -> tuple[int, ...]:
    return tuple(range(first, first + count * step, step))


def second_first_gpu(large: Sequence[int], small_count: int, small_step: int, num_gpus: int) -> int:
    """The first GPU of the small engine where the user named none: after the large one's if there are enough."""
    after = max(large) + 1
    return after if after + (small_count - 1) * small_step < num_gpus else large[0]


def working_bytes(gpu_bytes: int, num_gpus: int, chunk_tokens: int | None = None) -> int:
    """What SGLang sets aside for graphs and activations on a GPU of `gpu_bytes`, in an engine of `num_gpus`."""
    _, chunk, rows = next(each for each in _CHUNKS_AND_ROWS if gpu_bytes < each[0] * GIB)
    activation_tokens = max(chunk if chunk_tokens is None else chunk_tokens, 2_048)
    reserved_mib = 512 + 1.5 * activation_tokens + num_gpus / 8 * 1_024 + 2 * rows
    if gpu_bytes > 60 * GIB:
        reserved_mib = max(reserved_mib, 10 * 1_024)
    return int(reserved_mib * _MIB)


def split_memory(
    free_bytes: int,
    needs: Mapping[Role, Needs],
    shared_fraction: float | None = None,
    large_kv_share: float | None = None,
) -> dict[Role, int]:
    """By role, the bytes of weights and KV cache on a GPU that both engines are on, with `free_bytes` free of either.

    A role whose fraction the user gave is left out: it has that fraction of what is free when it starts. The large
    engine starts first. `shared_fraction`: the share of the free memory that both may take together for weights and KV;
    by default all but what they work with. `large_kv_share`: of the KV memory; by default what a token takes decides,
    so that both hold as many tokens, since both read one trajectory. Raises ConfigError where it cannot be told or does
    not fit.
    """
    large, small = needs["large"], needs["small"]
    if large.fraction is not None and small.fraction is not None:
        return {}
    unknown = [role for role, each in needs.items() if each.weights_bytes is None and each.fraction is None]
    if unknown:
        raise ConfigError(
            f"both engines are on one GPU, and the {unknown[0]} model's weights are not on this disk yet, so memory "
            f"cannot be divided: download it first, or give --large-mem-fraction-static (of what is free) and "
            f"--small-mem-fraction-static (of what the large engine left)"
        )
    working = large.working_bytes + small.working_bytes
    budget = free_bytes - working if shared_fraction is None else int(free_bytes * shared_fraction)
    if large.fraction is not None:
        assert small.weights_bytes is not None
        left = min(budget, free_bytes - working) - int(free_bytes * large.fraction)
        _require(left - small.weights_bytes >= free_bytes * _LEAST_KV_SHARE / 2, free_bytes, needs)
        return {"small": left}
    assert large.weights_bytes is not None
    small_weights = small.weights_bytes or 0
    kv_bytes = budget - large.weights_bytes - small_weights
    _require(kv_bytes >= free_bytes * _LEAST_KV_SHARE, free_bytes, needs)
    share = _by_tokens(large, small) if large_kv_share is None else large_kv_share
    static: dict[Role, int] = {"large": large.weights_bytes + int(share * kv_bytes)}
    if small.fraction is None:
        static["small"] = small_weights + kv_bytes - int(share * kv_bytes)
    return static


def fraction_of(static_bytes: int, free_bytes: int, role: Role) -> float:
    """`static_bytes` as ``--mem-fraction-static`` for an engine that starts with `free_bytes` free on its GPU."""
    if static_bytes > free_bytes * (1 - _MARGIN):
        raise ConfigError(
            f"the {role} engine was to have {static_bytes / GIB:.1f} GiB for weights and KV cache, and "
            f"{free_bytes / GIB:.1f} GiB are free on its GPU: something else is on it. "
            f"Give --{role}-mem-fraction-static"
        )
    return math.floor(static_bytes / free_bytes * 10_000) / 10_000


def split_cores(cores: int, small_cores: int | None) -> dict[Role, int]:
    """Cores that each engine computes with. Where there are too few for both, they share: one each at least."""
    small = min(cores // 2 if small_cores is None else small_cores, cores)
    return {"large": max(cores - small, 1), "small": max(small, 1)}


def _by_tokens(large: Needs, small: Needs) -> float:
    if not large.kv_bytes_a_token or not small.kv_bytes_a_token:
        return 0.5
    return large.kv_bytes_a_token / (large.kv_bytes_a_token + small.kv_bytes_a_token)


def _require(fits: bool, free_bytes: int, needs: Mapping[Role, Needs]) -> None:
    if not fits:
        parts = ", ".join(
            f"{role} {(each.weights_bytes or 0) / GIB:.1f} GiB of weights and {each.working_bytes / GIB:.1f} GiB to "
            f"work with"
            for role, each in needs.items()
        )
        raise ConfigError(
            f"two engines do not fit on a GPU with {free_bytes / GIB:.1f} GiB free: {parts}. Spread them over more "
            f"GPUs (--large-tp-size, --small-base-gpu-id), quantize, or give --large-mem-fraction-static and "
            f"--small-mem-fraction-static"
        )
