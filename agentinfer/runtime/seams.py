"""The table of every upstream name we touch, and the only way to hook one.

A row says which name, what we rely on, who upstream must reach it, and why. `source_check` compares the rows with the
installed wheel's source; `proof` shows in each running process that the hooks took effect. Each module of
`agentinfer.runtime` that touches upstream lists its rows as ``SEAMS`` and may not import sglang when imported.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from agentinfer.errors import SeamError

# Versions whose sources the rows were checked against.
SUPPORTED_SGLANG = ("0.5.21",)

# The feature of rows that every enabled feature stands on.
CORE = "core"
# The feature of rows of the engine without a GPU, which has no switch of its own.
CPU = "cpu"

Door = Literal["registry", "call", "read", "subclass", "hook"]
Kind = Literal["before", "after", "around", "replace"]
Process = Literal["launcher", "scheduler"]

# `launcher` has the HTTP server and the tokenizer manager. Upstream loads plugins in no other process.
PROCESSES: tuple[Process, ...] = ("launcher", "scheduler")

_SEAM_MODULES = (
    "agentinfer.runtime.proof",
    "agentinfer.runtime.lifecycle",
    "agentinfer.runtime.launch",
    "agentinfer.runtime.installation",
    "agentinfer.runtime.requests",
    "agentinfer.runtime.scoring",
    "agentinfer.runtime.forced",
    "agentinfer.runtime.speculation.seam_rows",
    "agentinfer.runtime.scheduling.seam_rows",
    "agentinfer.runtime.prefill.engine",
    "agentinfer.runtime.compression.template",
    "agentinfer.runtime.cpu.hooks",
)


@dataclass(frozen=True, slots=True)
class Seam:
    """One upstream name that we touch.

    `target`: dotted path.
    `parameters`: names in order, ``*args`` and ``**kwargs`` with their stars; for a class those of its ``__init__``.
    None where it is not called by or through us (a class we subclass, an attribute we read).
    `caller`: dotted path of the upstream function, class or module whose source must mention the target, so that what
    we put there is reached. None where only we use it.
    `door`: how we touch it; `Door` lists the strongest first. A row of door ``hook`` is hooked in each of `processes`
    whenever its feature is on.
    `feature`: one of `config.FEATURES`, or `CORE`, or `CPU`.
    """

    target: str
    parameters: tuple[str, ...] | None
    caller: str | None
    reason: str
    feature: str
    door: Door
    processes: tuple[Process, ...]

    @property
    def attribute(self) -> str:
        return self.target.rpartition(".")[2]


def rows_of_feature(feature: str) -> Callable[..., Seam]:
    """`Seam` with the feature filled in, for modules with many rows, most of them of the scheduler."""

    def row(
        target: str,
        parameters: tuple[str, ...] | None,
        caller: str | None,
        reason: str,
        door: Door,
        processes: tuple[Process, ...] = ("scheduler",),
    ) -> Seam:
        return Seam(target, parameters, caller, reason, feature, door, processes)

    return row


@dataclass(frozen=True, slots=True)
class Hooked:
    """A hook that we registered: upstream calls `function` around, before, after or instead of `seam.target`."""

    seam: Seam
    function: Callable[..., Any]
    kind: Kind


class HookLedger:
    """What our plugin did in this process. SGLang logs a failed plugin or hook and serves on, so we keep count."""

    def __init__(self, process: Process, rows: Callable[[], tuple[Seam, ...]], register: Callable[..., None]) -> None:
        self.process = process
        self.plugin_ran = False
        self.hooked: list[Hooked] = []
        self.failures: list[str] = []
        self._rows = rows
        self._register = register

    def hook(self, target: str, function: Callable[..., Any], kind: Kind) -> None:
        """Registers `function` on `target` in the processes that the target's row names, and remembers it.

        By `kind` it is called as ``before(*a, **k) -> (a, k) | None``, ``after(result, *a, **k)`` or
        ``around(original, *a, **k)``; with ``replace`` it takes the target's place.
        Raises SeamError for a target without a row of door ``hook``.
        """
        rows = [row for row in self._rows() if row.target == target and row.door == "hook"]
        if not rows:
            raise SeamError(f"{target} is no row of door 'hook' in the seam table; add it to its module's SEAMS first")
        if not any(self.process in row.processes for row in rows):
            return
        self._register(target, function, kind)
        self.hooked.append(Hooked(rows[0], function, kind))


def seams() -> tuple[Seam, ...]:
    """All rows, in the order of the modules that touch upstream. Imports those modules, but no sglang."""
    return tuple(row for name in _SEAM_MODULES for row in _rows_of(name))


def ledger() -> HookLedger:
    """This process's ledger."""
    return _LEDGER


def hook(target: str, function: Callable[..., Any], kind: Kind) -> None:
    """`HookLedger.hook` on this process's ledger."""
    _LEDGER.hook(target, function, kind)


def _rows_of(module_name: str) -> tuple[Seam, ...]:
    rows: tuple[Seam, ...] = importlib.import_module(module_name).SEAMS
    return rows


def _register_upstream(target: str, function: Callable[..., Any], kind: Kind) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(target, function, HookType(kind))


def _this_process() -> Process:
    # Our children are schedulers: no other child process of the engine loads plugins. The launcher says so itself
    # (`launch.py`), since it may in turn be somebody's child.
    return "launcher" if multiprocessing.parent_process() is None else "scheduler"


_LEDGER = HookLedger(_this_process(), seams, _register_upstream)
