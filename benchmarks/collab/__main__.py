"""AgentCollab on lookup tasks, with two real engines and everything it is compared with.

    python -m benchmarks.collab --json benchmarks/results/collab.json

What the engines say is recorded in `--trees`, and only what is missing there is asked for; figures are made from it.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.collab.episode import messages
from benchmarks.collab.evaluation import CONSTANT, GROWING, RANDOM_SEEDS, evaluate
from benchmarks.collab.recording import KINDS, PAIR, THREADS, examples, load, record_missing
from benchmarks.collab.tasks import make_tasks

TREES = Path(__file__).parents[1] / "results" / "collab_trees.json"
# Not that of the tasks on which the chat's form and the pair were chosen.
SEED = 2


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--json", type=Path, metavar="OUT", help="write all figures")
    add("--trees", type=Path, default=TREES, help="what the engines said; it is added to")
    add("--tasks", type=int, default=96)
    add("--budget-s", type=float, default=3600.0, help="record no task after this; run again to go on")
    add("--at-once", type=int, default=3, help="tasks recorded at the same time")
    add("--log-dir", type=Path, default=Path("/tmp"))
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    tasks = make_tasks(args.tasks, SEED, KINDS)
    record_missing(args.trees, tasks, args.budget_s, args.at_once, args.log_dir)
    recorded = load(args.trees, tasks)
    if recorded is None:
        print(f"{args.trees}: not all of {len(tasks)} tasks are recorded; run again to go on", file=sys.stderr)
        return 3
    kept = json.loads(args.trees.read_text(encoding="utf-8"))
    result = {
        "format": "agentinfer.benchmark.collab",
        "version": 1,
        "command": f"python -m benchmarks.collab --tasks {args.tasks} --json benchmarks/results/collab.json",
        "machine": kept["machine"],
        "models": {model.value: name for model, name in PAIR.items()},
        "threads": THREADS,
        "seed": SEED,
        "tasks": len(tasks),
        "kinds": [asdict(kind) for kind in KINDS],
        "examples": len(examples()),
        "chat": messages(tasks[0], (), examples()),
        "nodes": sum(len(tree.nodes) for tree in recorded.trees),
        "random_seeds": RANDOM_SEEDS,
        "settings": {"growing": asdict(GROWING), "constant": asdict(CONSTANT)},
        "costs": kept["costs"],
        "shared_tokens": kept["shared_tokens"],
        **evaluate(recorded),
    }
    text = json.dumps(result, indent=1)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
