"""What an op's `spec.py` says; the tests and `benchmarks.kernels` follow from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Outputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One point on an op's axes. `forces` names the branch it is there for; `options` are the generator's."""

    name: str
    axes: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    forces: str = ""


@dataclass(frozen=True, slots=True)
class OpSpec:
    """An op: its axes with their meaning, inputs, reference and what counts as equal to it.

    `make_inputs(case, generator)` gives the op's arguments on the CPU; `call(inputs, implementation)` runs it and names
    the results; `compare(actual, expected)` raises AssertionError, with `tolerance` the reason of what it lets pass.
    `cases` are for correctness and small, `measured` for the benchmark.
    """

    name: str
    axes: Mapping[str, str]
    make_inputs: Callable[[Case, torch.Generator], dict[str, Any]]
    call: Callable[[dict[str, Any], str | None], Outputs]
    compare: Callable[[Outputs, Outputs], None]
    tolerance: str
    cases: tuple[Case, ...]
    measured: tuple[Case, ...]
    on_cpu: tuple[str, ...] = ("cpu",)
    on_gpu: tuple[str, ...] = ("triton",)

    def check(self, case: Case, implementation: str | None, device: torch.device, seed: int = 0) -> None:
        """Raises AssertionError unless `implementation` on `device` equals the reference on the CPU."""
        inputs = self.make_inputs(case, torch.Generator().manual_seed(seed))
        expected = self.call(inputs, "reference")
        actual = self.call(to_device(inputs, device), implementation)
        self.compare({name: tensor.cpu() for name, tensor in actual.items()}, expected)


def equal(actual: Outputs, expected: Outputs) -> None:
    """Same names, shapes, types and values."""
    assert actual.keys() == expected.keys(), f"results {sorted(actual)}, expected {sorted(expected)}"
    for name, want in expected.items():
        got = actual[name]
        assert got.dtype == want.dtype, f"{name}: {got.dtype}, expected {want.dtype}"
        assert got.shape == want.shape, f"{name}: {list(got.shape)}, expected {list(want.shape)}"
        wrong = torch.nonzero((got != want).view(-1))[:, 0]
        assert len(wrong) == 0, (
            f"{name}: {len(wrong)} of {want.numel()} differ, first at {int(wrong[0])}: "
            f"{got.view(-1)[wrong[0]].item()}, expected {want.view(-1)[wrong[0]].item()}"
        )


def to_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """`inputs` with its tensors, also those in dataclasses with a `to`, on `device`."""
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in inputs.items()}
