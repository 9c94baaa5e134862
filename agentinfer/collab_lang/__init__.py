"""AgentCollab: a small and a large model on one trajectory (paper, section 1)."""
