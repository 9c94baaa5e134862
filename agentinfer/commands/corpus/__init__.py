"""`agentinfer corpus`: looking into the stores of contexts that drafts come from, filling and pruning them."""
