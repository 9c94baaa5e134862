"""Deep research on two models, as in the paper: a planner, seekers side by side, a writer.

    python examples/collab_research.py --large-url http://127.0.0.1:30000 --small-url http://127.0.0.1:30001 \\
        "How do tides and the moon hang together?"

See collab_loop.py for the two servers. The seekers are forks of the planner: each goes on from its trajectory and is
escalated to the large model by itself. What they search is a handful of sentences here; put your own in `search`.
"""

from __future__ import annotations

import argparse
import re

import sglang as sgl

from agentinfer.collab_lang.programs import CollabBackend, Tools, collab, collab_trail
from agentinfer.collab_lang.settings import CollabSettings

SENTENCES = (
    "The moon's gravity raises two bulges of water on the earth, one facing it and one on the far side.",
    "A place passes both bulges in about 24 hours and 50 minutes, so it has two high tides a lunar day.",
    "Spring tides come at new and full moon, when the sun pulls along the same line as the moon.",
    "Neap tides come at half moon and are the weakest.",
    "Tidal friction slows the earth and lets the moon drift away by 3.8 centimetres a year.",
)
ANGLES = ("causes", "timing", "consequences")


def search(query: str) -> str:
    """The sentences that have the most words in common with a query."""
    words = set(re.findall(r"\w+", query.lower()))
    ranked = sorted(SENTENCES, key=lambda each: -len(words & set(re.findall(r"\w+", each.lower()))))
    return "\n".join(ranked[:2])


TOOLS = Tools(search)


@collab(CollabSettings(warm_up_steps=2, max_steps=40))
def research(s: sgl.lang.interpreter.ProgramState, question: str, rounds: int) -> str:
    s += sgl.system(f"You research a question.\n{TOOLS.description}")
    s += sgl.user(f"{question}\nName what has to be found out about its {', '.join(ANGLES)}: a sentence each.")
    s += sgl.assistant(sgl.gen("plan", max_tokens=96, temperature=0))

    seekers = s.fork(len(ANGLES))
    for seeker, angle in zip(seekers, ANGLES, strict=True):
        seeker += sgl.user(f"Search for the {angle} only.")
    for step in range(rounds):
        for seeker in seekers:
            seeker += sgl.assistant(TOOLS.gen(f"query_{step}", max_tokens=64, temperature=0))
        for seeker in seekers:
            TOOLS.run(seeker, f"query_{step}")
    for seeker, angle in zip(seekers, ANGLES, strict=True):
        seeker += sgl.user(f"Say in one sentence what you found about the {angle}.")
        seeker += sgl.assistant(sgl.gen("finding", max_tokens=48, temperature=0))
    findings = [seeker["finding"] for seeker in seekers]
    s["trails"] = [collab_trail(seeker) for seeker in seekers]
    seekers.join()

    s += sgl.user("What the seekers found:\n" + "\n".join(findings) + f"\nNow answer: {question}")
    s += sgl.assistant(sgl.gen("report", max_tokens=128, temperature=0))
    return s["report"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Planner, seekers and writer on two models.")
    parser.add_argument("question", nargs="?", default="How do tides and the moon hang together?")
    parser.add_argument("--large-url", required=True)
    parser.add_argument("--small-url", required=True)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    sgl.set_default_backend(CollabBackend(args.large_url, args.small_url))
    state = research.run(question=args.question, rounds=args.rounds)
    if state.error() is not None:
        raise SystemExit(f"the program ended early: {state.error()}")
    for name, trail in zip(ANGLES, state["trails"], strict=True):
        print(f"{name}: " + " ".join(f"{step.model}/{step.verdict}" for step in trail))
    print("planner and writer: " + " ".join(f"{step.model}/{step.verdict}" for step in collab_trail(state, wait_s=10)))
    print(state.ret_value)


if __name__ == "__main__":
    main()
