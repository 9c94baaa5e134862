"""Which format a trace has, told by its content: names lie, and people rename files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import orjson

from agentinfer.errors import TraceError
from agentinfer.replay.session import Session, check_sessions
from agentinfer.replay.traces import bfcl, mini_swe_agent, openai_lines, records, swe_agent
from agentinfer.replay.traces.files import TraceFile, load

FORMATS = {
    "openai-messages": "JSON lines, a session a line with OpenAI chat messages",
    "agentinfer-record": "what a server writes with --agentinfer-record",
    "mini-swe-agent": "a .traj.json file of mini-swe-agent",
    "swe-agent": "a .traj file of SWE-agent",
    "bfcl": "bfcl:CATEGORY, e.g. bfcl:multi_turn_base, from the installed package bfcl-eval",
}
_FOLDER_ENDINGS = (".traj", ".traj.json", ".jsonl", ".jsonl.xz", ".jsonl.gz")


@dataclass(frozen=True, slots=True)
class Trace:
    """Sessions in the order of the file; `sha256` identifies the bytes they came from."""

    name: str
    format: str
    sha256: str
    sessions: list[Session]


def read_trace(name: str) -> Trace:
    """Read a file, a folder of trajectories, or `bfcl:CATEGORY`.

    Raises TraceError naming file, line and field when something is not as its format says.
    """
    if name.startswith("bfcl:"):
        sessions, sha256 = bfcl.read(name.removeprefix("bfcl:"))
        return Trace(name, "bfcl", sha256, check_sessions(sessions, name))
    path = Path(name)
    if not path.is_dir():
        file = load(path)
        format_name, sessions = _read_file(file)
        return Trace(name, format_name, file.sha256, check_sessions(sessions, name))
    return _read_folder(name, path)


def _read_folder(name: str, folder: Path) -> Trace:
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.endswith(_FOLDER_ENDINGS))
    if not paths:
        raise TraceError(f"{name}: no file ending in {', '.join(_FOLDER_ENDINGS)} in this folder")
    sessions: list[Session] = []
    formats: list[str] = []
    digest = hashlib.sha256()
    for path in paths:
        file = load(path)
        format_name, found = _read_file(file)
        sessions += found
        formats.append(format_name)
        digest.update(bytes.fromhex(file.sha256))
    return Trace(name, "+".join(dict.fromkeys(formats)), digest.hexdigest(), check_sessions(sessions, name))


def _read_file(file: TraceFile) -> tuple[str, list[Session]]:
    number, first_line = next(file.lines())
    try:
        first = orjson.loads(first_line)
    except orjson.JSONDecodeError as error:
        # Trajectories are written with indentation: the first line is then no JSON, the whole file is.
        first = _whole_document(file, number, error)
    if not isinstance(first, dict):
        raise TraceError(f"{file.path}:{number}: expected a JSON object, got {type(first).__name__}")
    if records.matches(first):
        return "agentinfer-record", records.read(file)
    if swe_agent.matches(first):
        return "swe-agent", swe_agent.read(file, first)
    if mini_swe_agent.matches(first):
        return "mini-swe-agent", mini_swe_agent.read(file, first)
    if "messages" in first or "requests" in first:
        return "openai-messages", openai_lines.read(file)
    known = "; ".join(f"{key}: {text}" for key, text in FORMATS.items())
    keys = ", ".join(first)[:120]
    raise TraceError(f"{file.path}:{number}: not a trace we know (its keys: {keys}). Known are {known}")


def _whole_document(file: TraceFile, number: int, line_error: orjson.JSONDecodeError) -> object:
    try:
        return orjson.loads(file.data)
    except orjson.JSONDecodeError:
        raise TraceError(f"{file.path}:{number}: not JSON ({line_error})") from line_error
