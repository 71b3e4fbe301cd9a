"""Topics: small experiments that answer the questions of someone who has just written a quantized layer by hand.

To add one: write `qattrain/explain/<name>.py` with a function from a Lab to an Explanation, and add one line to TOPICS.
"""

from qattrain.explain import affine, autograd, batchnorm, conv, granularity, integer, latent, mixed, ptq, scale, ste
from qattrain.explain.lab import Explanation, Lab, Table, Topic

TOPICS: dict[str, Topic] = {
    "ste": Topic("Rounding has no gradient, so what trains the weights, and where is that in the code?", ste.explain),
    "scale": Topic(
        "Weights times 2^n, rounded, never divided by 2^n: why 11 %, and why do they grow?",
        scale.explain,
        scale.ALLOWED_N,
    ),
    "ptq": Topic("Rounding after training or training with rounding: how few bits can each get by with?", ptq.explain),
    "affine": Topic("Scale and zero point: what do they do, and how far off can a rounded value be?", affine.explain),
    "conv": Topic("Convolution by hand: how do unfold, einsum and its three gradients work?", conv.explain),
    "autograd": Topic("A linear layer's backward, derived by hand: how do I know that it is right?", autograd.explain),
    "integer": Topic("One image through integers only: what are the codes, sums and shifts?", integer.explain),
    "latent": Topic("Why are weights still float in training, and how often do their codes flip?", latent.explain),
    "batchnorm": Topic("Batch norm: what does it hide, and where is it in a network of integers?", batchnorm.explain),
    "granularity": Topic("One weight scale per layer, or one per channel: which is better?", granularity.explain),
    "mixed": Topic("Which layers can take few bits, and why are the first and the last touchier?", mixed.explain),
}

__all__ = ["TOPICS", "Explanation", "Lab", "Table", "Topic"]
