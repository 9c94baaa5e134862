"""Where the two engines run: GPUs and their memory, or cores. Turns the plan of `memory` into flags at each start."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from agentinfer import models
from agentinfer.collab_lang.virtual_model.addresses import Role
from agentinfer.config import DISABLE_VARIABLE, CollabConfig
from agentinfer.errors import ConfigError
from agentinfer.runtime.collab.checkpoints import kv_bytes_a_token, model_folder, weights_bytes
from agentinfer.runtime.collab.command_lines import CommandLines, EngineLine
from agentinfer.runtime.collab.gpus import Gpu
from agentinfer.runtime.collab.memory import (
    GIB,
    Needs,
    fraction_of,
    gpu_ids,
    second_first_gpu,
    split_cores,
    split_memory,
    working_bytes,
)


class Placement:
    """`find_gpus` is asked once now and once at each start on a shared GPU; `cores` are those of this machine.

    Raises ConfigError for engines that do not fit. `is_shared_gpu`: the engines start one after the other, large first.
    `shares_device`: what one computes slows the other.
    """

    def __init__(
        self,
        lines: CommandLines,
        config: CollabConfig,
        environ: Mapping[str, str],
        find_gpus: Callable[[], Sequence[Gpu]],
        cores: int | None = None,
    ) -> None:
        self._lines = {line.role: line for line in lines.started_here}
        self._config = config
        self._environ = environ
        self._find_gpus = find_gpus
        self._cores = len(os.sched_getaffinity(0)) if cores is None else cores
        self._shared_fraction = lines.shared_fraction
        wants_gpu = any(line.device != "cpu" for line in self._lines.values())
        gpus = find_gpus() if wants_gpu else ()
        self._has_gpus = bool(gpus)
        self._ids = self._placed(gpus) if gpus else {}
        shared = set.intersection(*map(set, self._ids.values())) if len(self._ids) > 1 else set()
        self.is_shared_gpu = bool(shared)
        self.shares_device = self.is_shared_gpu or self._shares_cores()
        self._static_bytes: dict[Role, int] = {}
        if shared:
            free_bytes = min(gpus[index].free_bytes for index in shared)
            needs = {role: self._needs(line, gpus[min(shared)].total_bytes) for role, line in self._lines.items()}
            self._static_bytes = split_memory(
                free_bytes, needs, self._shared_fraction, large_kv_share=config.collab_kv_share
            )

    def flags(self, role: Role) -> list[str]:
        """What to append to the engine's command line at this start. May take seconds. Raises ConfigError."""
        line = self._lines[role]
        flags: list[str] = []
        if line.base_gpu_id is None and self._ids.get(role, (0,))[0] != 0:
            flags += ["--base-gpu-id", str(self._ids[role][0])]
        fraction: float | None = line.fraction
        if not self.is_shared_gpu:
            fraction = self._shared_fraction if fraction is None else fraction
        else:
            gpus = self._find_gpus()
            free_bytes = min(gpus[index].free_bytes for index in self._ids[role])
            if fraction is not None:
                # What it means now; beside the other engine's full cache it would mean less.
                self._static_bytes.setdefault(role, int(fraction * free_bytes))
            fraction = fraction_of(self._static_bytes[role], free_bytes, role)
        return flags if fraction is None else [*flags, "--mem-fraction-static", f"{fraction:g}"]

    def environ(self, role: Role) -> dict[str, str]:
        """The engine's environment: whatever it says, an engine is no pair; without a GPU, the cores that it has."""
        ours = {option.variable for option in CollabConfig.options()}
        environ = {name: value for name, value in self._environ.items() if name not in ours}
        off = [each for each in (environ.get(DISABLE_VARIABLE), CollabConfig.feature) if each]
        environ[DISABLE_VARIABLE] = ",".join(off)
        if len(self._lines) > 1 and not self._has_gpus:
            cores = split_cores(self._cores, self._config.collab_small_cores)
            environ.setdefault("OMP_NUM_THREADS", str(cores[role]))
        return environ

    def described(self) -> str | None:
        """The division of memory in words, or None where nothing is divided."""
        if not self._static_bytes:
            return None
        parts = [f"{role} {size / GIB:.1f} GiB" for role, size in self._static_bytes.items()]
        return f"one GPU for both engines; weights and KV cache: {', '.join(parts)}"

    def _shares_cores(self) -> bool:
        if len(self._lines) == 1 or self._has_gpus:
            return False
        threads = [self.environ(role)["OMP_NUM_THREADS"] for role in self._lines]
        return sum(int(each) if each.isdigit() else self._cores for each in threads) > self._cores

    def _placed(self, gpus: Sequence[Gpu]) -> dict[Role, tuple[int, ...]]:
        ids: dict[Role, tuple[int, ...]] = {}
        for role, line in self._lines.items():  # the large one comes first
            first = line.base_gpu_id or 0
            if line.base_gpu_id is None and "large" in ids:
                first = second_first_gpu(ids["large"], line.num_gpus, line.gpu_id_step, len(gpus))
            ids[role] = gpu_ids(first, line.num_gpus, line.gpu_id_step)
            if ids[role][-1] >= len(gpus):
                raise ConfigError(
                    f"the {role} engine is to run on GPUs {', '.join(map(str, ids[role]))}, and there are {len(gpus)} "
                    f"(--{role}-tp-size, --{role}-base-gpu-id)"
                )
        return ids

    def _needs(self, line: EngineLine, gpu_bytes: int) -> Needs:
        dtype = None if line.dtype == "auto" else line.dtype
        path = models.resolve(line.model_path, "float32" if dtype in ("float", "float32") else "bfloat16")
        folder = model_folder(path, self._environ)
        weights = None if folder is None else weights_bytes(folder, dtype)
        cell = None if folder is None else kv_bytes_a_token(folder, dtype, line.kv_cache_dtype)
        return Needs(
            weights_bytes=None if weights is None else weights // line.num_shards,
            kv_bytes_a_token=None if cell is None else max(cell // line.num_shards, 1),
            working_bytes=working_bytes(gpu_bytes, line.num_gpus, line.chunked_prefill_tokens),
            fraction=line.fraction,
        )
