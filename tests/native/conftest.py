"""Both implementations of the automaton, and the plainest model of what they must answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from agentinfer.spec_sam import reference


@pytest.fixture(params=["reference", "native"])
def implementation(request: pytest.FixtureRequest) -> Any:
    if request.param == "reference":
        return reference
    return request.getfixturevalue("native")


@pytest.fixture(scope="session")
def native() -> Any:
    return pytest.importorskip("agentinfer.spec_sam._core", reason="the compiled core is not built: pip install -e .")


@dataclass(frozen=True)
class BruteForce:
    """Answers by looking everywhere; `text` is the documents' tokens with -1 after each but the last."""

    documents: tuple[tuple[int, ...], ...]

    @property
    def text(self) -> list[int]:
        text: list[int] = []
        for number, document in enumerate(self.documents):
            text += ([-1] if number else []) + list(document)
        return text

    def ends(self) -> dict[tuple[int, ...], list[int]]:
        """Every string that occurs, with the positions in `text` of its last tokens, in order."""
        found: dict[tuple[int, ...], list[int]] = {}
        start = 0
        for document in self.documents:
            for end in range(len(document)):
                for first in range(end + 1):
                    found.setdefault(document[first : end + 1], []).append(start + end)
            start += len(document) + 1
        return found


@pytest.fixture
def brute_force() -> type[BruteForce]:
    return BruteForce


@pytest.fixture
def int32s() -> Any:
    return lambda values: np.array(values, dtype=np.int32)
