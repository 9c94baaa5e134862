"""AgentCollab offline: fitting a model's threshold on recorded sessions (`agentinfer collab`)."""
