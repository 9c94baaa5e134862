"""AgentSched against SGLang's own scheduling on live servers whose caches are too small for the sessions played."""
