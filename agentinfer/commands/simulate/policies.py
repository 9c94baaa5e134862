"""Policies by name: `agent`, or an order of stock SGLang with an eviction, as in `lpm+tlru`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from agentinfer.config import near
from agentinfer.radix_ext.facade import Policy
from agentinfer.radix_ext.policy import AgentPolicy
from agentinfer.radix_ext.settings import SchedulingSettings
from agentinfer.radix_ext.simulator import EVICTIONS, ORDERS, EngineCosts, SimulationError, StockPolicy

AGENT: Final = "agent"
_SHORT: Final = {"spf": "shortest-prefill-first", "ttl": "fcfs+ttl"}


@dataclass(frozen=True, slots=True)
class PolicyName:
    """`eviction` is None for the agent policy, which has its own. `given` is the name as it was written."""

    given: str
    order: str
    eviction: str | None

    def make(self, kv_tokens: int, settings: SchedulingSettings) -> Policy:
        """A policy of its own for one replica; `settings` are the agent policy's."""
        if self.eviction is None:
            return AgentPolicy(settings, kv_tokens)
        return StockPolicy(self.order, EVICTIONS[self.eviction])


def parse_policies(text: str) -> list[PolicyName]:
    """Comma-separated names. Raises SimulationError saying which there are."""
    found = [_parse(name.strip()) for name in text.split(",")]
    twice = sorted({name.given for name in found if found.count(name) > 1})
    if twice:
        raise SimulationError(f"policy {', '.join(twice)}: named twice")
    return found


def settings_for(
    costs: EngineCosts, max_wait_s: float | None, changes: Mapping[str, str | float | None]
) -> SchedulingSettings:
    """The agent policy's settings for an engine with these costs. Raises SimulationError for an unknown or bad one."""
    known = {field.name for field in fields(SchedulingSettings)}
    values: dict[str, float | None] = {}
    for name, value in changes.items():
        if name not in known:
            raise SimulationError(f"setting {name}: there is none of that name.{near(name, known)}")
        try:
            values[name] = None if value in (None, "none") else float(value or 0)
        except ValueError:
            raise SimulationError(f"setting {name}: expected a number or none, got {value!r}") from None
    values.setdefault("prefill_tokens_per_s", costs.prefill_tokens_per_s)
    if max_wait_s is not None:
        values["max_wait_s"] = max_wait_s
    return replace(SchedulingSettings(), **values)  # type: ignore[arg-type]


def _parse(name: str) -> PolicyName:
    if name == AGENT:
        return PolicyName(name, AGENT, None)
    order, plus, eviction = _SHORT.get(name, name).partition("+")
    order, eviction = _SHORT.get(order, order), eviction if plus else "lru"
    if order not in ORDERS or eviction not in EVICTIONS:
        orders = ", ".join([AGENT, *ORDERS])
        evictions = ", ".join(EVICTIONS)
        raise SimulationError(f"policy {name!r}: expected {orders}, these but the first with +{evictions} or ttl, spf")
    return PolicyName(name, order, eviction)
