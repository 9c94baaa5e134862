"""What the wheel imports from `sgl_kernel` on a CPU, and how it calls it, against our stand-ins. Reads source only."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from agentinfer.runtime.cpu import hicache, kernels, paging

spec = importlib.util.find_spec("sglang")
if spec is None or not spec.submodule_search_locations:
    pytest.skip("sglang is not installed", allow_module_level=True)
SGLANG = Path(next(iter(spec.submodule_search_locations)))

# Modules this engine never loads: gated delta nets, whose CPU kernels exist in the real package only, and backends for
# GPUs, whose `else` means ROCm or MUSA.
OUT_OF_SCOPE = {
    "srt/layers/attention/deepseek_v4_backend.py",
    "srt/layers/attention/linear/gdn_backend.py",
    "srt/layers/attention/linear/kda_backend.py",
    "srt/layers/attention/linear/kernels/gdn_triton.py",
    "srt/layers/moe/cutlass_w4a8_moe.py",
    "srt/layers/moe/fused_moe_triton/triton_kernels_moe.py",
}

OURS: dict[str, Callable[..., Any]] = {f.__name__: f for functions in kernels.SURFACE.values() for f in functions}


@dataclass(frozen=True)
class Use:
    """A name that a file of the wheel imports from `module`, and the name it is bound to there."""

    file: str
    module: str
    name: str
    bound_to: str


@cache
def parsed(file: str) -> ast.Module:
    return ast.parse((SGLANG / file).read_text(encoding="utf-8"))


@cache
def cpu_imports() -> tuple[Use, ...]:
    """Imports of `sgl_kernel` that run on a CPU: under a test for it, or in the last `else` of a chain over devices."""
    uses: list[Use] = []
    for part in ("srt", "kernels"):
        for path in sorted((SGLANG / part).rglob("*.py")):
            if "sgl_kernel" in path.read_text(encoding="utf-8"):
                file = str(path.relative_to(SGLANG))
                uses += imports_below(parsed(file), file, runs_on_cpu=None)
    return tuple(use for use in uses if use.file not in OUT_OF_SCOPE)


def imports_below(node: ast.AST, file: str, runs_on_cpu: bool | None) -> Iterator[Use]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom) and (child.module or "").partition(".")[0] == "sgl_kernel":
            if runs_on_cpu:
                for alias in child.names:
                    yield Use(file, child.module or "", alias.name, alias.asname or alias.name)
        elif isinstance(child, ast.If):
            other_device = names_a_device(child.test) and not names_cpu(child.test)
            here = False if other_device or runs_on_cpu is False else names_cpu(child.test) or runs_on_cpu
            for statement in child.body:
                yield from imports_below(ast.Module([statement], []), file, here)
            for statement in child.orelse:
                # An `elif` brings its own test; a plain `else` behind tests for other devices is where a CPU lands.
                is_last = other_device and runs_on_cpu is not False and not isinstance(statement, ast.If)
                yield from imports_below(ast.Module([statement], []), file, True if is_last else runs_on_cpu)
        else:
            yield from imports_below(child, file, runs_on_cpu)


def names_cpu(test: ast.expr) -> bool:
    return ast.unparse(test) in ("_is_cpu", "is_cpu()")


def names_a_device(test: ast.expr) -> bool:
    return any(device in ast.unparse(test) for device in ("is_cuda", "is_hip", "is_xpu", "is_musa", "is_npu"))


def calls_of(use: Use) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(parsed(use.file))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == use.bound_to
    ]


def binds(function: Callable[..., Any], call: ast.Call) -> str | None:
    """Why the call does not fit the function's parameters, or None."""
    try:
        inspect.signature(function).bind(*call.args, **{k.arg: k.value for k in call.keywords if k.arg is not None})
    except TypeError as error:
        return str(error)
    return None


def test_the_scan_sees_the_known_imports() -> None:
    """Guards the scan itself: these were read by eye."""
    seen = {(use.file, use.name) for use in cpu_imports()}
    assert ("srt/mem_cache/allocation.py", "assign_req_to_token_pool_cpu") in seen
    assert ("srt/speculative/eagle_utils.py", "verify_tree_greedy_cpu") in seen
    assert ("srt/speculative/ngram_worker.py", "reconstruct_indices_from_tree_mask") in seen
    assert ("kernels/ops/kvcache/cache_move.py", "copy_all_layer_kv_cache_cpu") in seen


def test_every_cpu_import_has_a_stand_in() -> None:
    missing = [
        f"{use.file}: from {use.module} import {use.name}"
        for use in cpu_imports()
        if use.name not in {function.__name__ for function in kernels.SURFACE.get(use.module, ())}
    ]
    assert missing == []


def test_every_stand_in_is_imported_by_the_wheel() -> None:
    assert sorted(set(OURS) - {use.name for use in cpu_imports()}) == []


@pytest.mark.parametrize("name", sorted(OURS))
def test_stand_in_takes_what_upstream_passes(name: str) -> None:
    uses = [use for use in cpu_imports() if use.name == name]
    calls = [(use, call) for use in uses for call in calls_of(use)]
    assert calls, f"no call of {name} found: the contract would be empty"
    problems = [
        f"{use.file}:{call.lineno}: {problem}"
        for use, call in calls
        if (problem := binds(OURS[name], call)) is not None
    ]
    assert problems == []


@pytest.mark.parametrize("name", sorted(OURS))
def test_positional_arguments_mean_the_same_parameter(name: str) -> None:
    """Where upstream passes a plain variable, its name and our parameter's agree on what it is."""
    known_aliases = {
        ("start_offset", "seq_lens"),
        ("end_offset", "new_seq_lens"),
        ("out_cache_loc", "tgt_cache_loc"),
        ("verified_seq_len", "seq_lens"),
        ("selected_index", "top_scores_index"),
        ("depth", "spec_steps"),
        ("draft_token_num", "num_verify_tokens"),
        ("batch_size", "bs"),
        ("speculative_num_steps", "num_steps"),
    }
    parameters = list(inspect.signature(OURS[name]).parameters)
    for use in (use for use in cpu_imports() if use.name == name):
        for call in calls_of(use):
            for parameter, argument in zip(parameters, call.args, strict=False):
                seen = argument.attr if isinstance(argument, ast.Attribute) else getattr(argument, "id", None)
                if seen is None or (parameter, seen) in known_aliases:
                    continue
                # retrive_* is upstream's older spelling of retrieve_*.
                assert seen.replace("retrieve", "retrive") == parameter, f"{use.file}:{call.lineno}"


@pytest.mark.parametrize(
    ("kernel", "ours"), [("alloc_extend_kernel", paging.alloc_extend), ("alloc_decode_kernel", paging.alloc_decode)]
)
@pytest.mark.parametrize("file", ["paged.py", "unified_sub_pool.py"])
def test_allocators_launch_the_kernels_we_replace(file: str, kernel: str, ours: Callable[..., Any]) -> None:
    launches = [
        node
        for node in ast.walk(parsed(f"srt/mem_cache/allocator/{file}"))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Subscript)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == kernel
    ]
    assert launches
    assert [binds(ours, launch) for launch in launches] == [None] * len(launches)


@pytest.mark.parametrize("file", ["mha.py", "mla.py"])
def test_host_pools_call_the_copy_we_provide(file: str) -> None:
    calls = [
        node
        for node in ast.walk(parsed(f"srt/mem_cache/pool_host/{file}"))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "transfer_kv_direct"
    ]
    assert calls
    assert [binds(hicache.transfer_kv_direct, call) for call in calls] == [None] * len(calls)


def test_host_allocation_takes_upstreams_parameters() -> None:
    (upstream,) = (
        node
        for node in ast.walk(parsed("srt/mem_cache/pool_host/common.py"))
        if isinstance(node, ast.FunctionDef) and node.name == "alloc_with_host_register"
    )
    names = [argument.arg for argument in upstream.args.args]
    assert names == list(inspect.signature(hicache.allocate).parameters)


def test_tree_mask_mode_number_is_upstreams() -> None:
    from agentinfer.runtime.cpu.kernels.tree import QLEN_ONLY

    (mode,) = (
        node
        for node in ast.walk(parsed("srt/speculative/eagle_utils.py"))
        if isinstance(node, ast.ClassDef) and node.name == "TreeMaskMode"
    )
    values = {
        statement.targets[0].id: statement.value
        for statement in mode.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    order = list(values)
    value = values["QLEN_ONLY"]
    assert (value.value if isinstance(value, ast.Constant) else order.index("QLEN_ONLY")) == QLEN_ONLY
