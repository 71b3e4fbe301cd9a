"""`qattrain bench`: our training and inference beside others', measured on this machine in one process.

To add a contender: write a function that builds it, and one entry in TRAINING (`training.py`) or INFERENCE
(`inference.py`). Left out: accuracy, which takes a dataset, and GPUs.
"""
