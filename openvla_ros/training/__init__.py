"""Fine-tuning: from recorded episodes to a folder that the node loads.

`config` says what a run shall do, `samples` and `loader` make batches, `objective` gives the loss,
`strategies` choose what is trained, `loop` trains, `result` writes what is deployed.
"""
