"""Run by test_clients.py with the clients' own Python: the openai package, plain, streaming and with tool calls."""

import json
import sys

from openai import BadRequestError, NotFoundError, OpenAI

base_url, model = sys.argv[1:]
client = OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)
question = [{"role": "user", "content": "What is the capital of France?"}]
tools = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
# What this small model says is not the matter here: the recorded reply makes it emit a well-formed call.
forced = {"agentinfer": {"session": "weather-agent", "forced": {"text": CALL}}}

plain = client.chat.completions.create(model=model, messages=question, max_tokens=12, temperature=0)
streamed = client.chat.completions.create(
    model=model, messages=question, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
)
chunks = list(streamed)

ask = [{"role": "user", "content": "How is the weather in Paris?"}]
called = client.chat.completions.create(model=model, messages=ask, tools=tools, extra_body=forced)
called_in_stream = client.chat.completions.create(
    model=model, messages=ask, tools=tools, stream=True, extra_body=forced
)
arguments, name = "", None
for chunk in called_in_stream:
    for delta in (chunk.choices[0].delta.tool_calls if chunk.choices else None) or []:
        name = delta.function.name or name
        arguments += delta.function.arguments or ""

reply = called.choices[0].message
history = [
    *ask,
    reply.model_dump(exclude_none=True),
    {"role": "tool", "tool_call_id": reply.tool_calls[0].id, "content": "Sunny, 21 degrees"},
]
second = client.chat.completions.create(
    model=model,
    messages=history,
    tools=tools,
    max_tokens=8,
    temperature=0,
    extra_body={"agentinfer": {"session": "weather-agent"}},
)
completion = client.completions.create(model=model, prompt="The capital of France is", max_tokens=4, temperature=0)
response = client.responses.create(
    model=model, input="What is the capital of France?", max_output_tokens=12, temperature=0
)


def refused(**fields):
    try:
        client.chat.completions.create(model=model, messages=question, max_tokens=1, **fields)
    except (BadRequestError, NotFoundError) as error:
        return {"status": error.status_code, "message": str(error)}
    return None


print(
    json.dumps(
        {
            "plain": plain.choices[0].message.content,
            "streamed": "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
            "streamed_usage": chunks[-1].usage.completion_tokens,
            "call": {
                "name": reply.tool_calls[0].function.name,
                "arguments": json.loads(reply.tool_calls[0].function.arguments),
            },
            "call_finish": called.choices[0].finish_reason,
            "streamed_call": {"name": name, "arguments": json.loads(arguments)},
            "second_cached": second.usage.prompt_tokens_details.cached_tokens,
            "second_prompt": second.usage.prompt_tokens,
            "completion": completion.choices[0].text,
            "response": response.output_text,
            "models": [entry.id for entry in client.models.list()],
            "malformed_hint": refused(extra_body={"agentinfer": {"turn": "three"}}),
        }
    )
)
