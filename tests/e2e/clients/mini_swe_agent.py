"""Run by test_clients.py with the clients' own Python: mini-swe-agent works three steps in a folder and submits."""

import json
import sys
from pathlib import Path

from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_model import LitellmModel

base_url, model, folder = sys.argv[1:]
# One recorded reply for every step; the command itself counts the steps and submits at the third.
COMMAND = (
    "echo step >> steps.txt; if [ $(wc -l < steps.txt) -ge 3 ]; "
    "then echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; cat steps.txt; else ls; fi"
)
CALL = f"I take one step.\n<tool_call>\n{json.dumps({'name': 'bash', 'arguments': {'command': COMMAND}})}\n</tool_call>"

agent = DefaultAgent(
    LitellmModel(
        model_name=f"openai/{model}",
        cost_tracking="ignore_errors",
        model_kwargs={
            "api_base": f"{base_url}/v1",
            "api_key": "none",
            "extra_body": {"agentinfer": {"forced": {"text": CALL}}},
        },
    ),
    LocalEnvironment(cwd=folder),
    system_template="You are a helpful assistant that can interact with a computer.",
    instance_template="Please solve this issue: {{task}}",
    step_limit=6,
    output_path=Path(folder) / "run.traj.json",
)
result = agent.run("count to three")
print(
    json.dumps(
        {"exit_status": result.get("exit_status"), "submission": result.get("submission"), "calls": agent.n_calls}
    )
)
