"""AgentSched on the engine: the pure policy of `radix_ext`, fed with what SGLang's scheduler and prefix cache do."""
