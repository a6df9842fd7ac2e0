"""Which link of the chain is broken: probes, evidence, and findings in words."""
