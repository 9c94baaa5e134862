"""For all tests: none is slow or fails because the machine is busy, and each random failure says how to repeat it."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings

from tests import groups

# Read when torch is loaded. Spinning OpenMP threads take a core from the servers that other tests run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile("agentinfer", deadline=None, print_blob=True)
settings.load_profile("agentinfer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = groups.in_order(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return groups.scheduler(config, log)
