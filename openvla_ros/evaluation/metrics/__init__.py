"""Figures of a policy from the records of its answers: errors, events, tokens, comparisons."""
