"""Sessions of which only token counts and times are recorded (`coding_timing`): `requests` instead of messages.

A request has `in` and `out` tokens, `pfx` blocks of `block_size` tokens that its prompt shares with the previous one of
the same chain, and `think_time`, the seconds before it in which a tool ran or a person thought. A marker of type
`subagent` stands before the `n` requests of a sub-agent, a chain of its own, which ran in the gap after the request
before it.
"""

from __future__ import annotations

from typing import Any

from agentinfer.errors import TraceError
from agentinfer.radix_ext.simulator import SimSession, SimTurn
from agentinfer.replay.traces.files import TraceFile

_Request = dict[str, Any]
# A tool, whose name is not recorded; without it, a person.
_TOOL = "tool"


def matches(first: dict[str, Any]) -> bool:
    """Whether a trace file's first line is of this format."""
    return isinstance(first.get("requests"), list) and "messages" not in first


def read(file: TraceFile, max_gap_s: float | None) -> list[SimSession]:
    """Its sessions, but for those without a request. Raises TraceError naming file, line and field."""
    sessions: list[SimSession] = []
    seen: set[str] = set()
    for number, (where, line) in enumerate(file.objects()):
        name = str(line.get("id", f"line{number + 1}"))
        if name in seen:
            raise TraceError(f"{where}: id: {name!r} comes twice; ids must be unique in one trace")
        seen.add(name)
        session = _session(where, line, name, max_gap_s)
        if session is not None:
            sessions.append(session)
    if not sessions:
        raise TraceError(f"{file.path}: no session with a request")
    return sessions


def _session(where: str, line: dict[str, Any], name: str, max_gap_s: float | None) -> SimSession | None:
    block_size = line.get("block_size", 64)
    requests = line.get("requests")
    if type(block_size) is not int or block_size < 1:
        raise TraceError(f"{where}: block_size: expected a whole number from 1, got {block_size!r}")
    if not isinstance(requests, list):
        raise TraceError(f"{where}: requests: expected a list, got {type(requests).__name__}")
    own: list[_Request] = []
    children: dict[int, list[SimSession]] = {}  # by the number of own requests before them
    num_children = 0
    position = 0
    while position < len(requests):
        request = requests[position]
        position += 1
        if not isinstance(request, dict):
            raise TraceError(f"{where}: requests[{position - 1}]: expected an object, got {request!r:.60}")
        if request.get("type") != "subagent":
            own.append(_checked(request, f"{where}: requests[{position - 1}]"))
            continue
        count = request.get("n")
        if type(count) is not int or not 0 <= count <= len(requests) - position:
            raise TraceError(
                f"{where}: requests[{position - 1}].n: expected the number of requests after it, got {count!r}"
            )
        chain = [_checked(requests[position + i], f"{where}: requests[{position + i}]") for i in range(count)]
        position += count
        if chain:
            num_children += 1
            child = SimSession(f"{name}/{num_children}", _turns(chain, block_size, max_gap_s, {}))
            children.setdefault(len(own), []).append(child)
    return SimSession(name, _turns(own, block_size, max_gap_s, children)) if own else None


def _turns(
    chain: list[_Request], block_size: int, max_gap_s: float | None, children: dict[int, list[SimSession]]
) -> tuple[SimTurn, ...]:
    turns: list[SimTurn] = []
    for number, request in enumerate(chain):
        # Blocks are shared with the previous prompt, so the reply between the two always counts as new.
        available = turns[-1].prompt_tokens if turns else 0
        kept = min(request["pfx"] * block_size, available, request["in"] - 1)
        is_final = number == len(chain) - 1
        gap_s = 0.0 if is_final else _gap_s(request, chain[number + 1])
        gap_s = gap_s if max_gap_s is None else min(gap_s, max_gap_s)
        tool = _TOOL if request.get("stop") == "tool_use" else None
        # Sub-agents before the first request belong to the first gap.
        sub_agents = children.get(number + 1, []) + (children.get(0, []) if not number else [])
        turns.append(SimTurn(kept, request["in"] - kept, max(1, request["out"]), gap_s, tool, tuple(sub_agents)))
    return tuple(turns)


def _gap_s(request: _Request, following: _Request) -> float:
    recorded = following.get("think_time")
    if recorded is not None:
        return float(recorded)
    return max(0.0, float(following["t"]) - float(request["t"]) - float(request.get("api_time") or 0.0))


def _checked(request: object, where: str) -> _Request:
    if not isinstance(request, dict):
        raise TraceError(f"{where}: expected an object, got {request!r:.60}")
    for field, lowest in (("in", 1), ("out", 0), ("pfx", 0)):
        value = request.get(field)
        if type(value) is not int or value < lowest:
            raise TraceError(f"{where}.{field}: expected a whole number from {lowest}, got {value!r}")
    for field in ("t", "think_time", "api_time"):
        value = request.get(field, 0.0)
        if type(value) not in (int, float) or not 0 <= value < 1e9:
            raise TraceError(f"{where}.{field}: expected seconds from 0, got {value!r}")
    return request
