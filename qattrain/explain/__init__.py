"""Topics: small real experiments that answer what somebody asks who wrote a quantized layer by hand.

To add one: write `qattrain/explain/<name>.py` with a function from a Lab to an Explanation, and one line in TOPICS.
"""

from qattrain.explain import affine, autograd, conv, integer, latent, ptq, scale, ste
from qattrain.explain.lab import Explanation, Lab, Table, Topic

TOPICS: dict[str, Topic] = {
    "ste": Topic("Rounding has no gradient: what trains the weights then, and where does it stand?", ste.explain),
    "scale": Topic("Weights times 2^n, rounded, not divided back: why 11 %, and why do they grow?", scale.explain),
    "ptq": Topic("Rounding after training against training with rounding: how few bits does each bear?", ptq.explain),
    "affine": Topic("Scale and zero point: what do they do, and how wrong can a rounded value be?", affine.explain),
    "conv": Topic("Convolution by hand: unfold, einsum, and its three gradients", conv.explain),
    "autograd": Topic("A linear layer's backward, derived by hand: how do I know that it is right?", autograd.explain),
    "integer": Topic("One image through integers only: codes, sums, multiplier and shift", integer.explain),
    "latent": Topic("Why are the weights still float in training, and how often do their codes flip?", latent.explain),
}

__all__ = ["TOPICS", "Explanation", "Lab", "Table", "Topic"]
