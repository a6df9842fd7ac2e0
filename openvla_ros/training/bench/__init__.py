"""Speed and memory of LoRA training at full size, beside the loop that OpenVLA's users run today.

`cases` is one measurement in one process, `command` runs all of them and judges.
"""
