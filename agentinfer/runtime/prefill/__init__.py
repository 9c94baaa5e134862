"""Computing the KV of prompts that are still to come, in pieces between the turns."""
