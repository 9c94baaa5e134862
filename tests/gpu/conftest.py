"""Everything here needs an NVIDIA GPU and is skipped without one. In one call: `python -m pytest tests/gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda")


@pytest.fixture
def flashinfer():
    return pytest.importorskip("flashinfer")
