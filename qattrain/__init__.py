"""qattrain: train a small LeNet with quantization-aware training at 1 to 8 bits, and ship the integers it trained."""

__version__ = "0.1.0"
