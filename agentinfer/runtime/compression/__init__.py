"""AgentCompress on the engine: requests get their shortened context, notes and KV are prepared beside the turns."""
