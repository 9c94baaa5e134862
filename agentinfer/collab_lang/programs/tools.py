"""Tools for programs: the model writes a call in a grammar, the tool runs, and its result becomes a message.

tools = Tools(look_up, add)
s += sgl.system("Answer by using the tools.\\n" + tools.description)
s += sgl.assistant(tools.gen("call"))
result = tools.run(s, "call")
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sglang.lang.interpreter import ProgramState
from sglang.lang.ir import SglConstantText, SglExprList, SglGen, SglRoleBegin, SglRoleEnd

from agentinfer.collab_lang.programs.backend import CollabBackend

# Strings in calls end somewhere, whatever a model would like to say.
_MAX_STRING_CHARS: Final = 400
_TYPES: Final = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}


@dataclass(frozen=True, slots=True)
class Call:
    """A call that ran. `result` is what the tool gave back, None where there was an `error`.

    `text` is what the model is told of either.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    result: Any = None
    error: str | None = None
    text: str = ""


class Tools:
    """Plain functions as tools: name, docstring and type hints say what a model may write."""

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self._functions = {each.__name__: each for each in functions}
        self._schemas = {name: _arguments_schema(each) for name, each in self._functions.items()}

    @property
    def description(self) -> str:
        """For the program's system message."""
        lines = ['Call a tool by a JSON object {"name": ..., "arguments": {...}}. The tools:']
        for name, function in self._functions.items():
            arguments = {key: _short(value) for key, value in self._schemas[name]["properties"].items()}
            lines.append(f"- {name}({json.dumps(arguments)}): {inspect.getdoc(function) or ''}".rstrip(": "))
        return "\n".join(lines)

    @property
    def json_schema(self) -> str:
        """What a call may be."""
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": schema},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name, schema in self._schemas.items()
        ]
        return json.dumps({"anyOf": calls})

    def gen(self, name: str, max_tokens: int = 256, **options: Any) -> SglGen:
        """`sgl.gen` of a call."""
        return SglGen(name, max_new_tokens=max_tokens, json_schema=self.json_schema, **options)

    def run(self, s: ProgramState, name: str) -> Call:
        """Runs the call that `gen(name)` wrote, and adds what came of it as a message. A faulty call is its result."""
        call = self.call(s[name])
        # The frontend language has no word for the role; only our backend knows what each model makes of it.
        role = "tool" if isinstance(s.stream_executor.backend, CollabBackend) else "user"
        s += SglExprList([SglRoleBegin(role), SglConstantText(call.text), SglRoleEnd(role)])
        return call

    def call(self, written: str) -> Call:
        """Runs a call as a model wrote it; never raises for what it or the tool did."""
        try:
            wanted = json.loads(written, strict=False)  # the grammar lets tabs stand in strings
            name, arguments = wanted["name"], wanted["arguments"]
            function = self._functions[name]
        except (ValueError, KeyError, TypeError) as error:
            return _failed("", {}, f"not a call of {', '.join(self._functions)} ({type(error).__name__}: {error})")
        try:
            result = function(**arguments)
        except Exception as error:
            return _failed(name, arguments, f"{type(error).__name__}: {error}")
        text = result if isinstance(result, str) else json.dumps(result, default=str)
        return Call(name, arguments, result, None, text)


def _failed(name: str, arguments: Any, error: str) -> Call:
    return Call(name, arguments if isinstance(arguments, Mapping) else {}, None, error, f"error: {error}")


def _arguments_schema(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters
    return {
        "type": "object",
        "properties": {name: _schema(hints.get(name, str)) for name in parameters},
        "required": [name for name, each in parameters.items() if each.default is inspect.Parameter.empty],
        "additionalProperties": False,
    }


def _schema(hint: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(each) for each in arguments if each is not type(None)]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if hint is list or origin is list:
        return {"type": "array", "items": _schema(arguments[0]) if arguments else {}, "maxItems": 16}
    if hint is str:
        return {"type": "string", "maxLength": _MAX_STRING_CHARS}
    if hint in _TYPES or origin is dict:
        return {"type": _TYPES.get(hint, "object")}
    raise TypeError(f"a tool's argument has type {hint!r}, expected str, int, float, bool, list, dict or Literal")


def _short(schema: Mapping[str, Any]) -> Any:
    return schema.get("type") or schema.get("enum") or [_short(each) for each in schema.get("anyOf", ())]
