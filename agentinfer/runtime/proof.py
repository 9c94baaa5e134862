"""Proves in a running process that our hooks are in place: SGLang logs a hook that failed and serves on without it.

A proof is positive. A process in which our plugin never ran cannot say so; therefore the launcher asks each scheduler
for its proof and stops when one is missing (see `lifecycle`).
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from typing import Any

from agentinfer.config import DISABLE_VARIABLE, AgentInferConfig
from agentinfer.errors import SeamError
from agentinfer.runtime.seams import CORE, Hooked, HookLedger, Process, Seam, ledger, seams
from agentinfer.runtime.source_check import version_note

_REGISTRY = "sglang.srt.plugins.hook_registry"

SEAMS = (
    Seam(
        target=f"{_REGISTRY}.HookRegistry.register",
        parameters=("cls", "target", "hook", "hook_type", "source"),
        caller=None,
        reason="every hook of ours goes through it",
        feature=CORE,
        door="call",
        processes=("launcher", "scheduler"),
    ),
    Seam(
        target=f"{_REGISTRY}.HookRegistry._patched",
        parameters=None,
        caller=f"{_REGISTRY}.HookRegistry.apply_hooks",
        reason="the only record of which hooks were applied; a failed one is merely logged",
        feature=CORE,
        door="read",
        processes=("launcher", "scheduler"),
    ),
    Seam(
        target=f"{_REGISTRY}._wrap_fn",
        parameters=("original_fn", "hook", "hook_type"),
        caller=f"{_REGISTRY}.HookRegistry._apply_target",
        reason="its wrappers hold our function in a closure cell, and the original as __wrapped__",
        feature=CORE,
        door="read",
        processes=("launcher", "scheduler"),
    ),
    Seam(
        target="sglang.srt.plugins.load_plugins",
        parameters=(),
        caller="sglang.srt.managers.scheduler.run_scheduler_process",
        reason="runs our plugin in the launcher and, before a scheduler is built, in its process",
        feature=CORE,
        door="call",
        processes=("launcher", "scheduler"),
    ),
)


@dataclass(frozen=True, slots=True)
class Proof:
    """What one process can show: the targets whose hooks are in place, and a line for each problem."""

    process: str
    pid: int
    hooks: tuple[str, ...]
    problems: tuple[str, ...]

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Proof:
        return cls(str(data["process"]), int(data["pid"]), tuple(data["hooks"]), tuple(data["problems"]))


def collect_proof(of: HookLedger | None = None) -> Proof:
    """This process's proof, after plugins were loaded. Raises nothing: whatever is wrong becomes a problem."""
    of = of or ledger()
    problems = [f"our plugin failed: {failure}" for failure in of.failures]
    if not of.plugin_ran:
        why = plugin_obstacle(os.environ) or "SGLang could not import it (its log above says why)"
        problems.append(f"our plugin did not run: {why}")
    good = []
    for each in of.hooked:
        try:
            problem = _hook_problem(each)
        except Exception as error:
            problem = f"{each.seam.target} cannot be examined: {type(error).__name__}: {error}"
        if problem is None:
            good.append(each.seam.target)
        else:
            problems.append(problem)
    return Proof(of.process, os.getpid(), tuple(good), tuple(problems))


def require_proofs(proofs: Iterable[Proof], process: Process, config: AgentInferConfig) -> None:
    """Raises SeamError with one message unless there is a proof and each shows every hook that `config` asks for."""
    proofs = tuple(proofs)
    wanted = hooked_targets(process, config)
    lines = [] if proofs else [f"no {process} process reported: our plugin did not run there"]
    features: set[str] = set()
    for proof in proofs:
        lines += [f"{process} (pid {proof.pid}): {problem}" for problem in proof.problems]
        missing = [target for target in wanted if target not in proof.hooks]
        features |= {row.feature for row in seams() if row.target in missing}
        if not proof.problems:
            lines += [f"{process} (pid {proof.pid}): {target} is not hooked" for target in missing]
    if lines:
        raise SeamError(
            "SGLang is not extended as configured, so nothing is served.\n  "
            + "\n  ".join(lines)
            + f"\n  {version_note()}. Serve without it: {DISABLE_VARIABLE}={_disable_hint(features, config)}. "
            "More: agentinfer doctor"
        )


def plugin_obstacle(environ: Mapping[str, str]) -> str | None:
    """Why SGLang will not run our plugins, with what to do, or None. Imports torch only where that decides."""
    plugins = [each for each in entry_points(group="sglang.srt.plugins") if each.value.startswith("agentinfer.")]
    platforms = [each for each in entry_points(group="sglang.srt.platforms") if each.value.startswith("agentinfer.")]
    if not plugins or not platforms:
        return "agentinfer is not installed as a package, so SGLang cannot find its entry points: pip install -e ."
    ours = [each.name for each in (*plugins, *platforms)]
    # SGLang's one list filters both groups.
    allowed = {name.strip() for name in environ.get("SGLANG_PLUGINS", "").split(",") if name.strip()}
    left_out = [name for name in ours if name not in allowed] if allowed else []
    if left_out and (plugins[0].name in left_out or _our_platform_is_needed()):
        return f"SGLANG_PLUGINS={environ['SGLANG_PLUGINS']} leaves us out: add {','.join(left_out)} or unset it"
    chosen = environ.get("SGLANG_PLATFORM")
    if chosen and chosen not in ours:
        return f"SGLANG_PLATFORM={chosen} excludes packages that bring another platform, ours too: unset it"
    return None


def _our_platform_is_needed() -> bool:
    from agentinfer.runtime.cpu.activate import reason_to_stay_off

    return reason_to_stay_off(dict(os.environ)) is None


def hooked_targets(process: Process, config: AgentInferConfig) -> tuple[str, ...]:
    """Targets that must be hooked in `process` when `config` is on."""
    features = {CORE, *config.enabled_features} if config.enabled_features else set()
    rows = [row for row in seams() if row.door == "hook" and process in row.processes and row.feature in features]
    return tuple(dict.fromkeys(row.target for row in rows))


def _disable_hint(features: set[str], config: AgentInferConfig) -> str:
    if not features or CORE in features:
        return "all"
    return ",".join(dict.fromkeys(name for feature in sorted(features) for name in config.needed_by(feature)))


def _hook_problem(hooked: Hooked) -> str | None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    seam = hooked.seam
    if seam.target not in HookRegistry._patched:
        return f"the hook on {seam.target} was not applied (SGLang's log above says why)"
    owner = pkgutil.resolve_name(seam.target.rpartition(".")[0])
    bound = inspect.getattr_static(owner, seam.attribute)
    current = bound.__func__ if isinstance(bound, classmethod | staticmethod) else bound
    layers = list(_layers(current))
    if not any(_holds(layer, hooked.function) for layer in layers):
        return f"{seam.target} was replaced after we hooked it, by {_describe(current)}"
    if hooked.kind == "replace" and isinstance(hooked.function, type):
        return None  # A class takes the target's place: nothing is wrapped, so there is no original to compare.
    seen = _runtime_parameters(layers[-1])
    if seen != seam.parameters:
        return f"{seam.target} takes {seen}, expected {seam.parameters}"
    # Below the hooks of all plugins; may be decorated upstream, hence not simply the innermost layer.
    original = next(layer for layer in layers if not _is_hook_wrapper(layer))
    stale = next(_stale_bindings(original), None) if isinstance(owner, types.ModuleType) else None
    return None if stale is None else f"{stale} still refers to the original of {seam.target}"


def _layers(function: Any) -> Iterator[Any]:
    """`function` and what it wraps, down to the original."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def _is_hook_wrapper(layer: Any) -> bool:
    code = getattr(layer, "__code__", None)
    return code is not None and code.co_filename == sys.modules[_REGISTRY].__file__


def _holds(layer: Any, function: Callable[..., Any]) -> bool:
    return layer is function or any(_content(cell) is function for cell in getattr(layer, "__closure__", None) or ())


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _runtime_parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    # str(p) writes the stars, but annotation and default as well.
    return tuple(str(each.replace(annotation=each.empty, default=each.empty)) for each in parameters)


def _stale_bindings(original: object) -> Iterator[str]:
    """Names in loaded sglang modules, and defaults of their functions, that still are `original`."""
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith("sglang.") or not isinstance(module, types.ModuleType):
            continue
        for name, value in list(vars(module).items()):
            if value is original:
                yield f"{module_name}.{name}"
            for owner, function in _functions(name, value, module_name):
                defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
                if function is original or any(each is original for each in defaults):
                    yield f"{module_name}.{owner}"


def _functions(name: str, value: object, module_name: str) -> Iterator[tuple[str, types.FunctionType]]:
    """The function that a module's name stands for, or a class's functions, where that module defines them."""
    members = {name: value}
    if isinstance(value, type) and value.__module__ == module_name:
        members = {f"{name}.{attribute}": member for attribute, member in vars(value).items()}
    for label, member in members.items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if isinstance(function, types.FunctionType) and function.__module__ == module_name:
            yield label, function


def _describe(value: object) -> str:
    return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', repr(value))}"
