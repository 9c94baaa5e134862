"""Sessions from the multi-turn tool tasks that the package bfcl-eval ships: `bfcl:multi_turn_base` and its siblings.

The package's JSON files are read where it is installed, without importing it: questions, tool schemas, and the ground
truth, which lists the calls that solve each question. From these a session is made as an agent would have had it: user,
a reply a call, its result, and a closing sentence. Results come from the task's environment (`bfcl_environments`).
No times are recorded in it, and functions that a task holds back at first are offered from the start.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import orjson

from agentinfer.errors import TraceError
from agentinfer.replay.session import Session, SessionBuilder
from agentinfer.replay.traces.bfcl_environments import Environments

# Which schema file describes which class of tools (constants/executable_backend_config.py of bfcl-eval).
_SCHEMA_FILES = {
    "GorillaFileSystem": "gorilla_file_system.json",
    "MathAPI": "math_api.json",
    "MessageAPI": "message_api.json",
    "TwitterAPI": "posting_api.json",
    "TicketAPI": "ticket_api.json",
    "TradingBot": "trading_bot.json",
    "TravelAPI": "travel_booking.json",
    "VehicleControlAPI": "vehicle_control.json",
}
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
_SYSTEM = "You are an assistant with tools. Call them to do what the user asks, and say when it is done."
_NOTHING_TO_CALL = "I need more information, or a tool that I do not have yet, to do this."
# As the benchmark's own runner hands over functions that were held back.
_MORE_TOOLS = "I have updated some more functions you can choose from. What about now?"


def read(category: str) -> tuple[list[Session], str]:
    """The category's sessions and the sha256 of the files they come from. Raises TraceError with what is there."""
    data = _data_folder()
    known = sorted(
        p.name.removeprefix("BFCL_v4_").removesuffix(".json") for p in data.glob("BFCL_v4_multi_turn_*.json")
    )
    if category not in known:
        raise TraceError(f"bfcl:{category}: no such category of multi-turn tasks; there are: {', '.join(known)}")
    questions = data / f"BFCL_v4_{category}.json"
    answers = data / "possible_answer" / questions.name
    digest = hashlib.sha256(questions.read_bytes() + answers.read_bytes()).hexdigest()
    truths = {line["id"]: line["ground_truth"] for _, line in _objects(answers)}
    documents = data / "multi_turn_func_doc"
    schemas = {name: [line for _, line in _objects(documents / file)] for name, file in _SCHEMA_FILES.items()}
    sessions = []
    for where, task in _objects(questions):
        try:
            sessions.append(_session(task, truths[task["id"]], schemas, category))
        except (KeyError, TypeError, IndexError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise TraceError(f"{where}: not a task as bfcl-eval 2026 writes them ({reason})") from error
    return sessions, digest


def _data_folder() -> Path:
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations:
        raise TraceError("bfcl: the package is not installed; `pip install --no-deps bfcl-eval` brings its tasks")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _objects(path: Path) -> list[tuple[str, dict[str, Any]]]:
    lines = path.read_bytes().splitlines()
    return [(f"{path}:{number}", orjson.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]


def _session(
    task: dict[str, Any], truth: list[list[str]], schemas: dict[str, list[dict[str, Any]]], category: str
) -> Session:
    offered = [s for name in task["involved_classes"] for s in schemas[name]]
    offered = [s for s in offered if s["name"] not in task.get("excluded_function", ())]
    parameters = {s["name"]: list(s["parameters"]["properties"]) for s in offered}
    environments = Environments(task["involved_classes"], task["initial_config"], "long_context" in category)
    builder = SessionBuilder(task["id"])
    builder.add({"role": "system", "content": _SYSTEM})
    for number, calls in enumerate(truth):
        for message in task["question"][number] or [{"role": "user", "content": _MORE_TOOLS}]:
            builder.add(message)
        for position, call in enumerate(calls):
            name, arguments = _parse_call(call, parameters)
            call_id = f"call_{number}_{position}"
            function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
            builder.add({"role": "assistant", "content": None, "tool_calls": [{"id": call_id, "function": function}]})
            result = environments.call(name, arguments)
            builder.add({"role": "tool", "tool_call_id": call_id, "content": result})
        builder.add({"role": "assistant", "content": _closing(calls)})
    return Session(
        id=task["id"],
        task=task["id"],
        run="ground_truth",
        source="bfcl-eval",
        turns=builder.turns(),
        tool_schemas=tuple(_openai_schema(s) for s in offered),
    )


def _parse_call(call: str, parameters: dict[str, list[str]]) -> tuple[str, dict[str, Any]]:
    """`mv(source='a', destination='b')` as name and arguments; positional ones take the schema's order."""
    node = ast.parse(call, mode="eval").body
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise TypeError(f"ground truth {call!r} is not a call")
    names = parameters.get(node.func.id, [])
    arguments = {names[i]: ast.literal_eval(value) for i, value in enumerate(node.args)}
    arguments |= {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
    return node.func.id, arguments


def _closing(calls: list[str]) -> str:
    if not calls:
        return _NOTHING_TO_CALL
    return f"Done: {', '.join(call.split('(')[0] for call in calls)}."


def _openai_schema(schema: dict[str, Any]) -> dict[str, Any]:
    function = {"name": schema["name"], "description": schema["description"]}
    return {"type": "function", "function": {**function, "parameters": _json_schema(schema["parameters"])}}


def _json_schema(value: Any) -> Any:
    """The package names types as Python does; JSON schema has other words for four of them."""
    if isinstance(value, list):
        return [_json_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _json_schema(item) for key, item in value.items() if key != "response"}
    if isinstance(value.get("type"), str):
        found["type"] = _JSON_TYPES.get(value["type"], value["type"])
    return found
