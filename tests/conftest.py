"""Hypothesis for all tests: no time limit on an example (a busy machine is no failure), and how to repeat a failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("agentinfer", deadline=None, print_blob=True)
settings.load_profile("agentinfer")
