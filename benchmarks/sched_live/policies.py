"""The schedulers that are compared, by the flags that choose them; all else is the same for all."""

from __future__ import annotations

from dataclasses import dataclass

OURS, BOUNDED = "agent", "agent_bounded"


@dataclass(frozen=True, slots=True)
class Policy:
    """`names_sessions`: SGLang's own session ids are sent, which only its session radix cache reads."""

    flags: tuple[str, ...]
    names_sessions: bool = False


def policies(turn_tokens: int, max_wait_s: float = 20.0) -> dict[str, Policy]:
    """By name; ours are `agent` as it comes and `agent_bounded`, for which the operator bounds waits by `max_wait_s`.

    `turn_tokens`: what a turn adds to its session's context. T-LRU is told so, and that a turn may recompute four times
    as much as it brings: it needs such figures from the operator.
    """
    estimate = f'{{"threshold": {5 * turn_tokens}, "next_prompt_estimate": {turn_tokens}}}'
    tlru = ("--radix-eviction-policy", "tlru", "--radix-eviction-policy-config", estimate)
    agent = ("--schedule-policy", "agent")
    return {
        "fcfs": Policy(("--schedule-policy", "fcfs")),
        "lpm": Policy(("--schedule-policy", "lpm")),
        "hrrn": Policy(("--schedule-policy", "hrrn")),
        "sjf": Policy(("--schedule-policy", "shortest-prefill-first")),
        "fcfs_tlru": Policy(("--schedule-policy", "fcfs", *tlru)),
        "lpm_tlru": Policy(("--schedule-policy", "lpm", *tlru)),
        "lpm_sessions": Policy(("--schedule-policy", "lpm", "--enable-session-radix-cache"), names_sessions=True),
        OURS: Policy(agent),
        BOUNDED: Policy((*agent, "--agentinfer-sched-max-wait-s", f"{max_wait_s:g}")),
    }
