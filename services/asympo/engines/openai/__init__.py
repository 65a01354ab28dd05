"""The engine that is a server of its own, asked through the `openai` client; neither vLLM nor torch here."""
