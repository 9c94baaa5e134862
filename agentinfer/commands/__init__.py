"""The parts of the `agentinfer` command that are no server and no library: a package a sub-command."""
