"""Every implementation of every op against its reference, on this machine.

    python -m agentinfer.kernels.check                 what runs here: on the CPU, and on the GPU if there is one
    TRITON_INTERPRET=1 python -m agentinfer.kernels.check --implementation triton     Triton kernels without a GPU
    python -m agentinfer.kernels.check --compile 90    compile them for compute capability 9.0, without a GPU

Prints one JSON object a case; `error` is null where it passed. Exits with 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

import torch

from agentinfer.kernels.dispatch import has_flashinfer
from agentinfer.kernels.sampling_weights.spec import SPEC as SAMPLING_WEIGHTS
from agentinfer.kernels.spec import Case, OpSpec
from agentinfer.kernels.tree_layout.spec import SPEC as TREE_LAYOUT
from agentinfer.kernels.verify_greedy.spec import SPEC as VERIFY_GREEDY
from agentinfer.kernels.verify_sampled.spec import LOGITS_SPEC as VERIFY_SAMPLED_LOGITS
from agentinfer.kernels.verify_sampled.spec import SPEC as VERIFY_SAMPLED

SPECS: tuple[OpSpec, ...] = (VERIFY_GREEDY, VERIFY_SAMPLED, VERIFY_SAMPLED_LOGITS, TREE_LAYOUT, SAMPLING_WEIGHTS)


def checks(implementation: str | None) -> Iterator[tuple[OpSpec, str, torch.device, Case]]:
    """What there is to check here: `implementation` (None: all) of each op that has it, on the devices that run it."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for spec in SPECS:
        runs = [(name, cpu) for name in spec.on_cpu]
        if torch.cuda.is_available():
            runs += [(name, gpu) for name in spec.on_gpu if name != "flashinfer" or has_flashinfer()]
        elif implementation == "triton" and "triton" in spec.on_gpu:
            runs += [("triton", cpu)]
        for name, device in runs:
            if implementation in (None, name):
                for case in spec.cases:
                    yield spec, name, device, case


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--implementation", help="only this one, e.g. cpu, triton, flashinfer")
    parser.add_argument("--compile", type=int, metavar="CAPABILITY", help="compile the Triton kernels, run nothing")
    options = parser.parse_args(argv)
    if options.compile is not None:
        from agentinfer.kernels.compile_only import compile_only

        compile_only(options.compile)
    failed = 0
    for spec, name, device, case in checks("triton" if options.compile else options.implementation):
        error = None
        try:
            if options.compile is None:
                spec.check(case, name, device)
            else:
                spec.call(spec.make_inputs(case, torch.Generator().manual_seed(0)), name)
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
            failed += 1
        line = {"op": spec.name, "implementation": name, "device": str(device), "case": case.name, "error": error}
        sys.stdout.write(json.dumps(line) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
