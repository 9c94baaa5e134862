"""Checks the seam table against an installed package from its source alone: nothing of it is imported or run."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agentinfer.runtime.seams import SUPPORTED_SGLANG, Seam

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# A name is re-exported through at most this many modules before we call it lost.
_MAX_REEXPORTS = 5


@dataclass(frozen=True, slots=True)
class Found:
    """Where a dotted path was found: the node that defines it, and the top level of its module."""

    node: ast.AST
    module: ast.Module


class SourceTree:
    """The source of the package whose folder is `root`, e.g. ``.../site-packages/sglang``. Each file is parsed once."""

    def __init__(self, root: Path) -> None:
        self._parent = root.parent
        self._parse = functools.cache(_parse)

    @classmethod
    def installed(cls, package: str = "sglang") -> SourceTree | None:
        """The installed package's source, or None where it is not installed."""
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            return None
        if spec is None or not spec.submodule_search_locations:
            return None
        return cls(Path(next(iter(spec.submodule_search_locations))))

    def find(self, dotted: str, reexports: int = 0) -> Found | None:
        """The definition of `dotted` (module, class, function, method, class field, module or instance attribute)."""
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            module = self._module(parts[:length])
            if module is None:
                continue
            node: ast.AST | None = module
            for index, name in enumerate(parts[length:], start=length):
                node = _member(node, name) if node is not None else None
                if isinstance(node, ast.ImportFrom):
                    if reexports == _MAX_REEXPORTS:
                        return None
                    origin = _imported_from(node, name, parts[: length - (not self._is_package(parts[:length]))])
                    return self.find(".".join([origin, *parts[index + 1 :]]), reexports + 1)
            return Found(node, module) if node is not None else None
        return None

    def _module(self, parts: list[str]) -> ast.Module | None:
        base = self._parent.joinpath(*parts)
        for path in (base / "__init__.py", base.with_name(base.name + ".py")):
            if path.is_file():
                return self._parse(path)
        return None

    def _is_package(self, parts: list[str]) -> bool:
        return self._parent.joinpath(*parts, "__init__.py").is_file()


def check_source(rows: Iterable[Seam], tree: SourceTree | None = None) -> list[str]:
    """One line for each thing in `rows` that the source does not bear out; empty when all holds."""
    tree = tree or SourceTree.installed()
    if tree is None:
        return ["sglang is not installed: pip install 'agentinfer[engine-cuda]', or see the README for the CPU engine"]
    return [problem for row in rows for problem in _problems(row, tree)]


def installed_sglang() -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return None


def version_note() -> str:
    """Installed and tested versions, for the end of an error message."""
    return f"sglang {installed_sglang() or 'is not installed'}; tested: {', '.join(SUPPORTED_SGLANG)}"


def parameter_names(node: ast.AST) -> tuple[str, ...] | None:
    """Parameters of a function node, or of a class node's ``__init__``, as `Seam.parameters` spells them; else None."""
    if isinstance(node, ast.ClassDef):
        init = _member(node, "__init__")
        return None if init is None else parameter_names(init)
    if not isinstance(node, _FUNCTIONS):
        return None
    arguments = node.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [each.arg for each in arguments.kwonlyargs]
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return tuple(names)


def _problems(row: Seam, tree: SourceTree) -> list[str]:
    problems = []
    target = tree.find(row.target)
    if target is None:
        return [f"{row.target} does not exist ({row.feature}: {row.reason})"]
    if row.parameters is not None:
        seen = parameter_names(target.node)
        if seen is None:
            problems.append(f"{row.target} cannot be called; expected parameters ({', '.join(row.parameters)})")
        elif seen != row.parameters:
            problems.append(f"{row.target} takes ({', '.join(seen)}), expected ({', '.join(row.parameters)})")
    if row.caller is not None:
        caller = tree.find(row.caller)
        parts = row.target.split(".")
        # Nobody writes `X.__init__`: what leads there is a mention of X.
        name = parts[-2] if parts[-1] == "__init__" else parts[-1]
        if caller is None:
            problems.append(f"{row.caller} does not exist; it is to reach {row.target}")
        elif not _mentions(caller.node, name):
            problems.append(f"{row.caller} does not mention {name}; it is to reach {row.target}")
    return problems


def _mentions(node: ast.AST, name: str) -> bool:
    for each in ast.walk(node):
        match each:
            case ast.Name(id=seen) | ast.Attribute(attr=seen) | ast.keyword(arg=seen) if seen == name:
                return True
            case ast.Constant(value=seen) if seen == name:  # getattr(x, "name")
                return True
            case ast.alias(name=seen) if seen.rpartition(".")[2] == name:
                return True
    return False


def _member(node: ast.AST, name: str) -> ast.AST | None:
    """What `name` is bound to in the body of a module or class, or as ``self.name`` in a class's methods."""
    found: ast.AST | None = None
    for statement in _statements(getattr(node, "body", [])):
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() if statement.name == name:
                found = statement
            case ast.ImportFrom() if any((each.asname or each.name) == name for each in statement.names):
                found = statement
            case ast.Assign(targets=targets) if any(_binds(each, name) for each in targets):
                # A class that is rebuilt under its own name (a decorator written out) keeps its members.
                found = found if isinstance(found, ast.ClassDef) else statement
            case ast.AnnAssign(target=ast.Name(id=seen)) if seen == name:
                found = statement
    if found is None and isinstance(node, ast.ClassDef):
        return _instance_attribute(node, name)
    return found


def _statements(body: list[ast.stmt]) -> Iterable[ast.stmt]:
    """A body's statements, those under `if`, `try` and `with` included."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            yield from _statements(statement.body)
            yield from _statements(getattr(statement, "orelse", []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)


def _binds(target: ast.expr, name: str) -> bool:
    if isinstance(target, ast.Tuple):
        return any(_binds(each, name) for each in target.elts)
    return isinstance(target, ast.Name) and target.id == name


def _instance_attribute(node: ast.ClassDef, name: str) -> ast.AST | None:
    for each in ast.walk(node):
        match each:
            case ast.Attribute(value=ast.Name(id="self"), attr=seen, ctx=ast.Store()) if seen == name:
                return each
    return None


def _imported_from(statement: ast.ImportFrom, name: str, package: list[str]) -> str:
    """The dotted path that `name` stands for after ``from module import ...`` in a module of `package`."""
    original = next(each.name for each in statement.names if (each.asname or each.name) == name)
    base = package[: len(package) - statement.level + 1] if statement.level else []
    return ".".join([*base, *([statement.module] if statement.module else []), original])


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))
