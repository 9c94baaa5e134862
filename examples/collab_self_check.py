"""Self-check: an answer is written, read over by whoever's turn it is, and written again, for a batch of questions.

    python examples/collab_self_check.py --large-url http://127.0.0.1:30000 --small-url http://127.0.0.1:30001

See collab_loop.py for the two servers. `check="verdict"` asks for TRUE or FALSE alone, at the price of a short prefill.
The program is an ordinary one: on a plain `RuntimeEndpoint` it runs on that model.
"""

from __future__ import annotations

import argparse

import sglang as sgl

from agentinfer.collab_lang.programs import CollabBackend, collab_trail
from agentinfer.collab_lang.settings import Check, CollabSettings

QUESTIONS = (
    "Which is heavier, a kilogram of iron or a kilogram of feathers?",
    "What is the third month of the year?",
)


@sgl.function
def self_check(s: sgl.lang.interpreter.ProgramState, question: str, rounds: int) -> str:
    s += sgl.user(question)
    s += sgl.assistant(sgl.gen("answer_0", max_tokens=48, temperature=0))
    for number in range(1, rounds + 1):
        s += sgl.user("Is the answer right? Say yes or no.")
        s += sgl.assistant(sgl.select(f"is_right_{number}", ["yes", "no"]))
        if s[f"is_right_{number}"] == "yes":
            return s[f"answer_{number - 1}"]
        s += sgl.user("Then answer again.")
        s += sgl.assistant(sgl.gen(f"answer_{number}", max_tokens=48, temperature=0))
    return s[f"answer_{rounds}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers that are read over, on two models.")
    parser.add_argument("--large-url", required=True)
    parser.add_argument("--small-url", required=True)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    settings = CollabSettings(warm_up_steps=1, check=Check.VERDICT, max_steps=None)
    backend = CollabBackend(args.large_url, args.small_url, settings)
    batch = [{"question": question, "rounds": args.rounds} for question in QUESTIONS]
    for question, state in zip(QUESTIONS, self_check.run_batch(batch, backend=backend), strict=True):
        if state.error() is not None:
            raise SystemExit(f"the program ended early: {state.error()}")
        who = " ".join(f"{step.model}/{step.verdict}" for step in collab_trail(state, wait_s=10))
        print(f"{question}\n  {state.ret_value.strip()}\n  {who}")
    found = backend.hand_overs
    print(f"{found.switches} switches; prefilled before them: {found.prefilled_share}")


if __name__ == "__main__":
    main()
