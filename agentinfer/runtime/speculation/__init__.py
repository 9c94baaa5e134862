"""AgentSAM inside SGLang: the registered algorithm, its worker, verification, and its figures."""
