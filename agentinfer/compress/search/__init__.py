"""Search compression: which results of a search are worth an agent's tokens."""
