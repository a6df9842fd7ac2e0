"""How `openvla-tiny` came to be: its architecture, its vocabulary, its lessons.

The embedded policy is trained by `finetune` alone; this package says on what, and from which start.
"""
