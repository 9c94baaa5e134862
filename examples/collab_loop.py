"""An agent that looks things up, spoken by two models: the large one opens, the small one goes on while it gets on.

    python -m agentinfer.launch_server --model-path LARGE --port 30000 &
    python -m agentinfer.launch_server --model-path SMALL --port 30001 &
    python examples/collab_loop.py --large-url http://127.0.0.1:30000 --small-url http://127.0.0.1:30001 \\
        "How many inhabitants do the capitals of France and Italy have together?"

Any two SGLang servers will do, `embedded:gemma3-270m` and `embedded:smollm2-135m` as well; models so small rarely find
the answer. The progress check and the prefill on the other model run while `look_up` does.
"""

from __future__ import annotations

import argparse

import sglang as sgl

from agentinfer.collab_lang.programs import Tools, collab, collab_trail

FACTS = {
    "capital of france": "Paris",
    "capital of italy": "Rome",
    "inhabitants of paris": "2,100,000",
    "inhabitants of rome": "2,750,000",
}


def look_up(what: str) -> str:
    """A fact, such as the capital of a country or the inhabitants of a city."""
    return FACTS.get(what.strip().lower(), f"nothing is known about {what!r}; known are {', '.join(FACTS)}")


def add(first: int, second: int) -> int:
    """The sum of two numbers."""
    return first + second


def answer(text: str) -> str:
    """Gives the user the final answer."""
    return text


TOOLS = Tools(look_up, add, answer)


@collab
def agent(s: sgl.lang.interpreter.ProgramState, question: str, steps: int) -> str | None:
    s += sgl.system(f"Answer the user's question. In each message, use one tool.\n{TOOLS.description}")
    s += sgl.user(question)
    for step in range(steps):
        s += sgl.assistant(TOOLS.gen(f"call_{step}", max_tokens=96, temperature=0))
        call = TOOLS.run(s, f"call_{step}")
        if call.name == "answer" and call.error is None:
            return call.text
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="An agent with tools on two models.")
    parser.add_argument("question", nargs="?", default="What is the capital of France?")
    parser.add_argument("--large-url", required=True)
    parser.add_argument("--small-url", required=True)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    state = agent.run(question=args.question, steps=args.steps, large=args.large_url, small=args.small_url)
    for step in collab_trail(state, wait_s=10):
        sure = "" if step.p_true is None else f" (p {step.p_true:.2f})"
        print(f"{step.step:2} {step.model:5} because {step.reason}; then {step.verdict}{sure} {step.why}")
    if state.error() is not None:
        raise SystemExit(f"the program ended early: {state.error()}")
    print(f"answer: {state.ret_value or 'none within the steps'}")


if __name__ == "__main__":
    main()
