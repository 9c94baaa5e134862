"""The device that an engine started here would run on, found without starting one."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Instructions that decide how fast the engine is without a GPU, as /proc/cpuinfo spells them.
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "bf16", "sve")


@dataclass(frozen=True, slots=True)
class Device:
    """`kind` as in SGLang's --device; `platform` names what serves it; `omp_threads` is what the user set, or None;
    `obstacle` is why our platform does not serve a CPU, or None."""

    kind: str
    summary: str
    platform: str
    cores: int
    cpu_flags: frozenset[str]
    omp_threads: int | None
    obstacle: str | None = None


def this_device(environ: Mapping[str, str]) -> Device:
    """Imports torch, and asks our CPU platform whether it would serve here."""
    cores = len(os.sched_getaffinity(0))
    flags = cpu_flags()
    threads = environ.get("OMP_NUM_THREADS", "")
    kind, summary = _accelerator() or ("cpu", "")
    platform_name, obstacle = _platform(kind)
    return Device(
        kind=kind,
        summary=summary or cpu_summary(cores, flags, environ),
        platform=platform_name,
        cores=cores,
        cpu_flags=flags,
        omp_threads=int(threads) if threads.isdigit() else None,
        obstacle=obstacle,
    )


def missing_device(device: Device) -> str | None:
    """Why an engine started here without --device would find nothing to run on, and what to do; None where it finds
    something."""
    if device.obstacle is None or device.kind != "cpu":
        return None
    import torch

    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return (
        f"torch {torch.__version__} ({built_for}) sees no GPU, and the engine without a GPU stays off, since "
        f"{device.obstacle}. With a GPU: nvidia-smi must list it, with a driver at least as new as torch's CUDA. "
        "Without: make clean, then make serve ENGINE=cpu"
    )


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The telling instruction sets of the first processor; empty where the system does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split()) & frozenset(_TELLING_FLAGS)
    return frozenset()


def cpu_summary(cores: int, flags: frozenset[str], environ: Mapping[str, str]) -> str:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    instructions = " ".join(each for each in _TELLING_FLAGS if each in flags) or "no vector instructions known"
    settings = " ".join(f"{name}={environ[name]}" for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in environ)
    return f"CPU {platform.machine()}, {cores} cores, {memory_gb:.0f} GB, {instructions}; {settings or 'OMP_* not set'}"


def _accelerator() -> tuple[str, str] | None:
    try:
        import torch
    except ImportError:
        return None
    if torch.cuda.is_available():
        kind: Literal["cuda"] = "cuda"  # torch calls ROCm so as well, and so does SGLang
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return kind, "; ".join(f"{card.name}, {card.total_memory / 1e9:.0f} GB" for card in cards)
    if torch.accelerator.is_available():
        current = torch.accelerator.current_accelerator()
        return (current.type, f"{torch.accelerator.device_count()} x {current.type}") if current else None
    return None


def _platform(kind: str) -> tuple[str, str | None]:
    """What serves the device, and what keeps our platform from a CPU."""
    if kind != "cpu":
        return f"SGLang's own ({kind})", None
    from agentinfer.runtime.cpu.activate import reason_to_stay_off

    try:
        obstacle = reason_to_stay_off(os.environ)
    except ImportError as error:
        return f"none: {error}", None
    return ("agentinfer's engine without a GPU" if obstacle is None else f"SGLang's own, since {obstacle}"), obstacle
