"""AgentCompress offline: what an agent carries, what is computed, and what it can still know, by way of compressing."""
