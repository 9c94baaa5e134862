"""AgentSched: what is queued, what is kept in the cache, and what is admitted."""
