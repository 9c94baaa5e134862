"""The flags that a pair's supervisor reads, against the installed engine's own parser."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from agentinfer.runtime.collab.role_flags import OF_THE_DOOR, OF_THE_WEIGHTS, ROLES, SPELLINGS

pytestmark = pytest.mark.sglang

PROBE = """
import argparse, json
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
print("PROBE" + json.dumps({name: action.dest for action in parser._actions for name in action.option_strings}))
"""


# Where smg-grpc-servicer is installed, as beside the CUDA build: it makes abbreviations ambiguous, but none different.
OF_OTHER_PACKAGES = {"--servicer-impl"}


@pytest.fixture(scope="module")
def destinations() -> dict[str, str]:
    """By every spelling of the engine's flags, what it sets."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENTINFER_")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, env=environment, timeout=180, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("PROBE")]
    assert lines, done.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("PROBE"))
    return {name: sets for name, sets in found.items() if name not in OF_OTHER_PACKAGES}


@pytest.mark.parametrize("first", SPELLINGS)
def test_spellings_and_abbreviations_are_those_of_the_engine(destinations, first: str) -> None:
    destination = destinations[first]
    assert set(SPELLINGS[first]) == {name for name, sets in destinations.items() if sets == destination}
    for full, shortest in SPELLINGS[first].items():
        assert full.startswith(shortest)
        meant = [name for name in destinations if name.startswith(shortest)]
        assert shortest == full or meant == [full]
        if shortest != full:
            shorter = [name for name in destinations if name.startswith(shortest[:-1])]
            assert len(shorter) > 1, f"{shortest[:-1]} would do as well"


def test_no_flag_of_the_engine_looks_like_one_with_a_role(destinations) -> None:
    assert [name for name in destinations if name.startswith(tuple(f"--{role}-" for role in ROLES))] == []


def test_flags_with_an_owner_exist(destinations) -> None:
    assert (OF_THE_DOOR | OF_THE_WEIGHTS) - set(destinations) == set()
