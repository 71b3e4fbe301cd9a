"""`qattrain bench`: the speed of our training and inference next to others', measured on this machine in one process.

To add a contender: write a function that builds it, and one entry in `training.TRAINING` or `inference.INFERENCE`.
Left out: accuracy, which needs a dataset, and GPUs.
"""
