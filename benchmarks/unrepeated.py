"""Sessions in which nothing repeats, to see what speculation costs where it cannot help.

    python -m benchmarks.unrepeated --out unrepeated.jsonl
    python -m benchmarks.spec_live --trace unrepeated.jsonl --variants off agent_sam --out RESULT

Words are drawn at random from those that a tokenizer keeps whole, so a pair of tokens hardly ever comes twice. The file
is one of OpenAI messages, as `agentinfer replay` reads them.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from agentinfer.models import prepare


def words(tokenizer: Tokenizer) -> list[str]:
    """Lower-case words that are one token behind a space."""
    pieces = (piece.removeprefix("Ġ") for piece in tokenizer.get_vocab() if piece.startswith("Ġ"))
    return sorted(piece for piece in pieces if piece.isascii() and piece.isalpha() and piece.islower())


def session(name: str, rng: random.Random, vocabulary: Sequence[str], turns: int, size: int) -> dict[str, Any]:
    """`size` words a message."""
    messages = [{"role": "system", "content": " ".join(rng.choices(vocabulary, k=size))}]
    for _ in range(turns):
        for role in ("user", "assistant"):
            messages.append({"role": role, "content": " ".join(rng.choices(vocabulary, k=size))})
    return {"id": name, "task": name, "run": 0, "source": "unrepeated", "messages": messages}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--words", type=int, default=150, help="words a message")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    vocabulary = words(Tokenizer.from_file(str(prepare("smollm2-135m") / "tokenizer.json")))
    rng = random.Random(arguments.seed)
    with arguments.out.open("w", encoding="utf-8") as file:
        for number in range(arguments.sessions):
            made = session(f"unrepeated-{number}", rng, vocabulary, arguments.turns, arguments.words)
            file.write(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
