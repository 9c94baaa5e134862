"""AgentCollab evaluated on lookup tasks with two real engines: who should speak in which step, and what it is worth."""
