"""The trees of all tasks from two real engines, kept in a file, so that a recording can go on where it ended."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import aiohttp
from tokenizers import Tokenizer

from agentinfer.collab_lang.controller import Model
from agentinfer.models import prepare
from benchmarks.automaton import machine
from benchmarks.collab import costs
from benchmarks.collab.engine import Encode, Engine, steps_of_both
from benchmarks.collab.evaluation import Recorded
from benchmarks.collab.tasks import Kind, Task, Wording, kinds, make_tasks
from benchmarks.collab.tree import record, tree_from_json
from benchmarks.live_server import LiveServer

# By ability, not by size: on 24 other runs of such tasks the 135M model was right in 11, the 270M one, of which two
# thirds are its vocabulary's embeddings, in 9; drawing by lot is right in 6.
PAIR: Final = {Model.LARGE: "smollm2-135m", Model.SMALL: "gemma3-270m"}
KINDS: Final[Sequence[Kind]] = kinds((2, 3, 4), (1, 3), tuple(Wording))
_EXAMPLES_SEED: Final = 77
_EXAMPLES: Final = (0, 5)
_COST_REPEATS: Final = 7
_FLAGS: Final = ("--max-total-tokens", "16384", "--max-running-requests", "16", "--dtype", "bfloat16")
THREADS: Final = 1


def examples() -> list[Task]:
    """Solved tasks in front of every chat; none of them is among those that are evaluated."""
    made = make_tasks(12, _EXAMPLES_SEED, kinds((2, 3), (1, 2), tuple(Wording)))
    return [made[number] for number in _EXAMPLES]


def load(path: Path, tasks: Sequence[Task]) -> Recorded | None:
    """What `path` has, if that is all of `tasks`."""
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    trees = {each["task"]: tree_from_json(each) for each in document.get("trees", [])}
    if any(task.id not in trees for task in tasks):
        return None
    seconds = {model: (document["costs"][model]["prefill_s"], document["costs"][model]["decode_s"]) for model in Model}
    shared = {model: document["shared_tokens"][model] for model in Model}
    return Recorded(tasks, [trees[task.id] for task in tasks], shared, seconds)


def record_missing(path: Path, tasks: Sequence[Task], budget_s: float, at_once: int, log_dir: Path) -> None:
    """Adds to `path` what can be recorded in about `budget_s`; the engines run only meanwhile."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"trees": []}
    known = {each["task"] for each in document["trees"]}
    missing = [task for task in tasks if task.id not in known]
    if not missing:
        return
    deadline = time.monotonic() + budget_s
    with ExitStack() as running:
        servers = {}
        for model, name in PAIR.items():
            flags = [*_FLAGS, "--served-model-name", name, "--model-path", str(prepare(name))]
            servers[model] = LiveServer(flags, log_dir / f"collab-{name}.log", THREADS)
            running.callback(servers[model].stop)
        for server in servers.values():  # they come up together
            server.wait()
        urls = {model: server.url for model, server in servers.items()}
        asyncio.run(_record(document, path, missing, urls, deadline, at_once))


async def _record(
    document: dict[str, Any],
    path: Path,
    missing: Sequence[Task],
    urls: Mapping[Model, str],
    deadline: float,
    at_once: int,
) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as http:
        engines = {model: Engine(http, urls[model], name, examples(), encoder(name)) for model, name in PAIR.items()}
        if "costs" not in document:
            document["machine"] = machine()
            document["costs"] = {
                model: asdict(each) for model, each in (await costs.measure(engines, _COST_REPEATS, 0)).items()
            }
            document["shared_tokens"] = {model: await engines[model].shared_tokens(missing) for model in Model}
        waiting = iter(missing)

        async def work() -> None:
            for task in waiting:
                if time.monotonic() > deadline:
                    return
                tree = await record(task, lambda task, said: steps_of_both(engines, task, said))
                document["trees"].append(tree.as_json())
                _write(path, document)
                print(f"{task.id}: {len(tree.nodes)} nodes", file=sys.stderr, flush=True)

        await asyncio.gather(*(work() for _ in range(at_once)))


def encoder(model: str) -> Encode:
    tokenizer = Tokenizer.from_file(str(prepare(model) / "tokenizer.json"))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    head = {key: value for key, value in document.items() if key != "trees"}
    trees = ",\n".join(json.dumps(each) for each in document["trees"])
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(head, indent=1)[:-2] + f',\n "trees": [\n{trees}\n]\n}}\n', encoding="utf-8")
    partial.replace(path)
