"""Latency, memory and equality of tokens of this engine beside Hugging Face's, in one run."""
