"""The embedded models themselves, converted: transformers reads them, they know things, their tokenizers are exact."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agentinfer.models.catalogue import CATALOGUE, EmbeddedModel, find_model
from agentinfer.models.store import ModelStore

pytestmark = pytest.mark.e2e

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Written for this test, so that no model has it by heart.
PROSE = (
    "Water boils at a lower temperature on a mountain than at sea level, because the air presses less on its surface. "
    "A cook who lives high up therefore has to boil potatoes for longer than one who lives by the sea, and some dishes "
    "cannot be cooked there at all without a pressure cooker. The opposite happens inside that pot: the steam cannot "
    "escape, the pressure rises, and the water becomes hotter than one hundred degrees before it boils."
)
TRICKY = [
    "  two spaces   three",
    "\n\n\t\tx\r\n\r\n",
    "def f(x):\n    return [x + 1, {'a': 0.5e-3}]  # ok\n",
    "naïve café 日本語 한국어 🙂👩‍👩‍👧 \u200b e\u0301",
    "https://a.b/c?d=e&f=1234567",
    "<table><tr> <b>x</b></table>",
    "“quotes” — dash… I'll we've DON'T it's",
    "ﬁ ligature Å ① Ⅷ ½ ｶﾅ 𝔘𝔫𝔦",
    "\x00\x01\x7f",
    " leading and trailing ",
    '{"name": "f", "arguments": {"path": "/tmp/x"}}',
    "<start_of_turn>user <|im_start|>assistant",
    "",
]


def texts() -> list[str]:
    rng = random.Random(0)
    noise = ["".join(rng.choice("abcd \n\t<>éß日語🙂{}[]\"'\\0123._-") for _ in range(60)) for _ in range(500)]
    # U+2581 stands for a space inside Gemma's vocabulary; text that holds it literally is the one thing not preserved.
    source = Path(__file__).read_text(encoding="utf-8")
    return [*TRICKY, PROSE, *(source[i : i + 500] for i in range(0, len(source), 500)), *noise]


@pytest.fixture(scope="module", params=CATALOGUE, ids=lambda model: model.name)
def model(request: pytest.FixtureRequest) -> EmbeddedModel:
    return request.param


@pytest.fixture(scope="module")
def directory(model: EmbeddedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ModelStore(tmp_path_factory.mktemp("cache")).prepare(model, "bfloat16")


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def network(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def test_parameters_and_context_are_the_catalogue_s(model: EmbeddedModel, network: Any) -> None:
    assert network.num_parameters() == model.num_parameters
    assert network.config.max_position_embeddings == model.context_tokens


def test_prose_is_likely(network: Any, tokenizer: Any) -> None:
    """Nats a token. As converted 3.7 and 3.6; with q's rows left interleaved 9.4 and 7.8."""
    ids = tokenizer(PROSE, return_tensors="pt").input_ids
    with torch.no_grad():
        assert float(network(ids, labels=ids).loss) < 4.0


def test_chat_answers_and_ends_its_turn(model: EmbeddedModel, network: Any, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    output = network.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs.input_ids.shape[1] :]
    end_of_turn = model.end_of_turn or tokenizer.eos_token
    assert tokenizer.decode(output) == f"The capital of France is Paris.{end_of_turn}"


def test_reply_tokens_are_the_next_prompt_s(model: EmbeddedModel, tokenizer: Any) -> None:
    """Not only the text: the ids of a prompt and of the reply to it begin the next prompt's ids."""
    call = {"function": {"name": "read_file", "arguments": '{"path": "a.txt"}'}}
    asked = [{"role": "user", "content": "What is in a.txt?"}]
    reply = 'I look.\n<tool_call>\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n</tool_call>'
    end_of_turn = model.end_of_turn or tokenizer.eos_token

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    answered = [*asked, {"role": "assistant", "content": "I look.", "tool_calls": [call]}]
    then = [*answered, {"role": "tool", "tool_call_id": "1", "content": "hello"}]
    following = tokenizer.apply_chat_template(then, tokenize=False, add_generation_prompt=True)
    expected = [*ids(prompt), *ids(reply), *ids(end_of_turn)]
    assert ids(following)[: len(expected)] == expected


def test_text_survives_encoding(tokenizer: Any) -> None:
    for text in texts():
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_gemma3_ids_are_sentencepiece_s(tmp_path_factory: pytest.TempPathFactory) -> None:
    spm = pytest.importorskip("sentencepiece")
    metadata, encode = _metadata_and_encoder(find_model("gemma3-270m"), tmp_path_factory.mktemp("gemma3"))
    reference = spm.SentencePieceProcessor(model_proto=_sentencepiece_model(metadata))
    for text in _without_control_tokens(metadata):
        assert encode(text) == reference.encode(text), text


def test_smollm2_ids_are_llama_cpp_s(tmp_path_factory: pytest.TempPathFactory) -> None:
    metadata, encode = _metadata_and_encoder(find_model("smollm2-135m"), tmp_path_factory.mktemp("smollm2"))
    reference = _byte_level_reference(metadata)
    for text in _without_control_tokens(metadata):
        assert encode(text) == reference(text), text


def _without_control_tokens(metadata: dict[str, Any]) -> list[str]:
    """The references take no control token from text; a chat engine must."""
    typed = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)
    control = [token for token, kind in typed if kind == 3]
    kept = [text for text in texts() if not any(token in text for token in control)]
    assert len(kept) > 500
    return kept


def _metadata_and_encoder(model: EmbeddedModel, work_dir: Path) -> tuple[dict[str, Any], Callable[[str], list[int]]]:
    from agentinfer.models.gguf import GgufFile
    from agentinfer.models.source import locate
    from agentinfer.models.tokenizer import build_tokenizer

    with GgufFile(locate(model, work_dir)) as file:
        built = build_tokenizer(file.metadata)
        return file.metadata, lambda text: built.encode(text, add_special_tokens=False).ids


def _byte_level_reference(metadata: dict[str, Any]) -> Callable[[str], list[int]]:
    """Byte-level BPE as llama.cpp does it for its pre-tokenizer "smollm": two patterns in turn, then merges by rank."""
    regex = pytest.importorskip("regex")
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(metadata["tokenizer.ggml.merges"])}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbol = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}

    def encode(text: str) -> list[int]:
        found: list[int] = []
        for piece in regex.split(r"(\p{N})", text):
            for word in words.findall(piece):
                parts = [symbol[byte] for byte in word.encode()]
                while pairs := [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]:
                    _, at = min(pairs)
                    parts[at : at + 2] = ["".join(parts[at : at + 2])]
                found += [ids[part] for part in parts]
        return found

    return encode


def _sentencepiece_model(metadata: dict[str, Any]) -> bytes:
    """The vocabulary as a sentencepiece_model.proto, written by hand: field numbers are that file's."""

    def varint(value: int) -> bytes:
        encoded = b""
        while value > 127:
            encoded += bytes([value & 127 | 128])
            value >>= 7
        return encoded + bytes([value])

    def number(field: int, value: int) -> bytes:
        return varint(field << 3) + varint(value)

    def blob(field: int, value: bytes) -> bytes:
        return varint(field << 3 | 2) + varint(len(value)) + value

    tokens, scores, types = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    ids = {name: metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("unknown", "bos", "eos", "padding")}
    pieces = []
    for token_id, (token, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
        # llama.cpp writes user-defined pieces with plain spaces, and counts <unk> among the control pieces.
        text = token.replace(" ", "\u2581") if kind == 4 else token
        kind = 2 if token_id == ids["unknown"] else kind
        pieces.append(blob(1, blob(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind)))
    bpe_with_byte_fallback = number(3, 2) + number(4, len(tokens)) + number(35, 1)
    names = b"".join(number(40 + i, ids[name]) + blob(45 + i, tokens[ids[name]].encode()) for i, name in enumerate(ids))
    spaces_kept = blob(1, b"identity") + number(3, 0) + number(4, 0) + number(5, 1)
    return b"".join(pieces) + blob(2, bpe_with_byte_fallback + names) + blob(3, spaces_kept)
