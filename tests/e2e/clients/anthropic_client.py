"""Run by test_clients.py with the clients' own Python: the anthropic package, plain, streaming and with a tool call."""

import json
import sys

from anthropic import Anthropic, BadRequestError

base_url, model = sys.argv[1:]
client = Anthropic(base_url=base_url, api_key="none", max_retries=0)
request = {
    "model": model,
    "max_tokens": 12,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}
tool = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'

# A greedy choice, asked for where this client has no argument of its own for it.
greedy = {"temperature": 0}
plain = client.messages.create(**request, extra_body=greedy)
with client.messages.stream(**request, extra_body=greedy) as stream:
    streamed = stream.get_final_message()
called = client.messages.create(
    model=model,
    max_tokens=64,
    messages=[{"role": "user", "content": "How is the weather in Paris?"}],
    tools=[tool],
    extra_body={"agentinfer": {"session": "claude-weather", "forced": {"text": CALL}}},
)
use = next(block for block in called.content if block.type == "tool_use")
second = client.messages.create(
    model=model,
    max_tokens=8,
    messages=[
        {"role": "user", "content": "How is the weather in Paris?"},
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in called.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Sunny, 21 degrees"}]},
    ],
    tools=[tool],
    extra_body=greedy,
)
try:
    client.messages.create(**request, extra_body={"agentinfer": {"last": "yes"}})
    malformed = None
except BadRequestError as error:
    malformed = {"status": error.status_code, "message": str(error)}
print(
    json.dumps(
        {
            "plain": plain.content[0].text,
            "streamed": streamed.content[0].text,
            "use": {"name": use.name, "input": use.input},
            "stop_reason": called.stop_reason,
            "second_tokens": second.usage.output_tokens,
            "malformed_hint": malformed,
        }
    )
)
