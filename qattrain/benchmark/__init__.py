"""`qattrain bench`: our training and inference beside others', measured on this machine in one process.

To add a contender: write a function that builds it, and one entry in TRAINING (`training.py`) or INFERENCE
(`inference.py`). Left out: accuracy, which takes a dataset, and GPUs.
"""

from qattrain.benchmark.inference import INFERENCE
from qattrain.benchmark.run import FULL, QUICK, Effort, run_benchmark
from qattrain.benchmark.training import TRAINING

__all__ = ["FULL", "INFERENCE", "QUICK", "TRAINING", "Effort", "run_benchmark"]
