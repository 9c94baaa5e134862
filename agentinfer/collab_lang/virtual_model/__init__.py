"""The virtual model: two engines behind one model name on the OpenAI API."""
