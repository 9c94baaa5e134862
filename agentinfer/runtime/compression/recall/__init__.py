"""The `recall` tool behind the OpenAI chat API: the server offers it, and answers its calls itself."""
