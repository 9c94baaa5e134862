"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for one that is not there.

Both need the real package, which the CPU engine does without; it is taken from the environment or from the folder
`triton` beside its interpreter (`pip install --no-deps --target .venv/triton triton==3.7.1`). The interpreter has to be
chosen before Triton is imported, so the work happens in processes of their own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentinfer.kernels.check import SPECS

UPSTREAM = Path(__file__).parent / "kernels_upstream.py"
CASES = [
    pytest.param(spec.name, case.name, id=f"{spec.name}-{case.name}")
    for spec in SPECS
    if "triton" in spec.on_gpu
    for case in spec.cases
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """The environment of a process that can import Triton."""
    extra = {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:  # absent, or the engine's stand-in
        beside = Path(sys.prefix) / "triton"
        if not (beside / "triton").is_dir():
            pytest.skip(f"no Triton: pip install --no-deps --target {beside} triton==3.7.1")
        extra["PYTHONPATH"] = os.pathsep.join(filter(None, [str(beside), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **extra}


def errors_of(arguments: list[str], environment: dict[str, str]) -> dict[tuple[str, str], str | None]:
    """By op and case, what a run of `agentinfer.kernels.check` prints."""
    run = subprocess.run(
        [sys.executable, "-m", "agentinfer.kernels.check", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert lines, run.stderr
    return {(line["op"], line["case"]): line["error"] for line in lines}


@pytest.fixture(scope="module")
def interpreted(environment) -> dict[tuple[str, str], str | None]:
    return errors_of(["--implementation", "triton"], {**environment, "TRITON_INTERPRET": "1"})


@pytest.fixture(scope="module")
def compiled(environment) -> dict[tuple[str, str], str | None]:
    return errors_of(["--compile", "90"], environment)


@pytest.mark.parametrize(("op", "case"), CASES)
def test_interpreted_equals_reference(op, case, interpreted):
    assert interpreted[op, case] is None


@pytest.mark.parametrize(("op", "case"), CASES)
def test_compiles_for_hopper(op, case, compiled):
    """Each case is a specialisation of its own: a width or batch of one becomes a constant."""
    assert compiled[op, case] is None


@pytest.mark.sglang
def test_greedy_walk_equals_upstreams_kernel(environment):
    """SGLang's own Triton kernel, interpreted, on random trees: the same three tensors."""
    run = subprocess.run(
        [sys.executable, str(UPSTREAM)],
        env={**environment, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    counted = json.loads(run.stdout)
    assert counted["compared"] == 20
    assert counted["accepted_drafts"] > 10, "too few accepted for the comparison to mean much"
