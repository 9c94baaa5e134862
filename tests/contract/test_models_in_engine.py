"""What the installed engine makes of an embedded model's directory: template format, tool-call parser, end tokens."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("sglang")
pytest.importorskip("jinja2")

from agentinfer.models.catalogue import CATALOGUE, EmbeddedModel
from tests.template_rendering import render

pytestmark = pytest.mark.sglang

CALLS = [{"path": "a.txt", "note": 'é <b> "q"'}, {}]


@pytest.fixture(params=CATALOGUE, ids=lambda model: model.name)
def model(request: pytest.FixtureRequest) -> EmbeddedModel:
    return request.param


def test_template_takes_content_as_text(model: EmbeddedModel) -> None:
    # As "openai" format the engine would hand over parts as they came, and forget text inside unknown ones.
    from sglang.srt.parser.jinja_template_utils import (
        detect_jinja_template_content_format,
        jinja_template_may_reorder_tool_results,
    )

    assert detect_jinja_template_content_format(model.chat_template) == "string"
    assert not jinja_template_may_reorder_tool_results(model.chat_template)


def test_rendered_tool_calls_are_what_the_qwen_parser_reads(model: EmbeddedModel) -> None:
    from sglang.srt.entrypoints.openai.protocol import Function, Tool
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    sent = [{"function": {"name": "read_file", "arguments": json.dumps(values)}} for values in CALLS]
    messages = [{"role": "user", "content": "Hi"}]
    prompt = render(model.chat_template, messages, add_generation_prompt=True)
    messages.append({"role": "assistant", "content": "I look.", "tool_calls": sent})
    reply = render(model.chat_template, messages)[len(prompt) :]
    parser = FunctionCallParser([Tool(type="function", function=Function(name="read_file"))], "qwen")
    text, calls = parser.parse_non_stream(reply)
    assert text == "I look."
    assert [(call.name, json.loads(call.parameters)) for call in calls] == [("read_file", v) for v in CALLS]


def test_engine_ends_a_reply_at_every_listed_token(model: EmbeddedModel, tmp_path, monkeypatch) -> None:
    pytest.importorskip("gguf")
    from sglang.srt.configs.model_config import ModelConfig

    from agentinfer.models.convert import generation_config, model_config
    from agentinfer.models.gguf import GgufFile
    from agentinfer.models.source import installed_file, locate

    if any(installed_file(part) is None for part in model.parts):
        pytest.skip(f"not installed: {' '.join(model.requirements)}")
    with GgufFile(locate(model, tmp_path)) as file:
        (tmp_path / "config.json").write_text(json.dumps(model_config(file.metadata, "bfloat16")))
        listed = generation_config(file.metadata, model.end_of_turn)
        (tmp_path / "generation_config.json").write_text(json.dumps(listed))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = ModelConfig(model_path=str(tmp_path))
    assert set(listed["eos_token_id"]) <= set(config.hf_eos_token_id)
    assert config.context_len == model.context_tokens
