"""agentinfer: LLM agents finish their tasks sooner on a stock SGLang server, with the same answers."""

__version__ = "0.1.0"
