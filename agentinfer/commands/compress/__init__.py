"""What AgentCompress would do to recorded sessions (`agentinfer compress`): figures, and the histories side by side."""
