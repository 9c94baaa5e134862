"""AgentCompress: fewer tokens for an agent to carry, without a wait and without losing a fact it needs."""
