"""The table of training contenders."""

from functools import partial

from qattrain.benchmark.brevitas_lenet import brevitas_training
from qattrain.benchmark.contender import Contender
from qattrain.benchmark.ordinary import EXAMPLE_BATCH, ordinary_example, plain_loop
from qattrain.benchmark.own import own_training
from qattrain.config import FLOAT_BITS, QuantConfig
from qattrain.experiment import AUTO_BATCH
from qattrain.quant import QUANTIZERS

COMPARED_QUANTIZERS = ("lsq", "affine", "pow2", "ternary", "binary")  # whose speeds are published
COMPARED_BITS = (8, 4, 2)  # widths at which every one of them that has them is measured
EAGER = "-eager"  # behind the name of what runs without compiled kernels


def _own(name: str, quantizer: str, bits: int, eager: bool = True) -> list[Contender]:
    """Compiled, and (`eager`) without a compiler beside it."""
    quant = QuantConfig(quantizer=quantizer, bits=bits)
    command = f"qattrain train --bits {bits}" + ("" if quantizer == "lsq" else f" --quantizer {quantizer}")
    rows = [Contender(name, command, (AUTO_BATCH,), partial(own_training, quant=quant, compiles=True))]
    if eager:
        what, build = f"{command} --set train.compile=off", partial(own_training, quant=quant, compiles=False)
        rows.append(Contender(name + EAGER, what, (AUTO_BATCH,), build))
    return rows


def _quantized() -> list[Contender]:
    rows = []
    for name in COMPARED_QUANTIZERS:
        widths = range(8, 0, -1) if name == "lsq" else sorted(QUANTIZERS[name].weight_bits, reverse=True)
        for bits in widths:
            compared = bits in COMPARED_BITS or bits == 1
            if compared or name == "lsq":  # of lsq every width: is speed flat in the bits?
                rows += _own(f"{name}-w{bits}a{bits}", name, bits, compared)
    return rows


TRAINING: tuple[Contender, ...] = (
    Contender(
        "example",
        "the ordinary PyTorch example: torchvision MNIST, ToTensor, Normalize, DataLoader, fp32, batch 64",
        (EXAMPLE_BATCH,),
        ordinary_example,
    ),
    Contender("plain", "the float net in plain PyTorch, images resident in memory, fp32", (AUTO_BATCH,), plain_loop),
    *_own("float", "lsq", FLOAT_BITS),
    *_quantized(),
    *(
        Contender(f"brevitas-w4a4{name}", what, (AUTO_BATCH,), partial(brevitas_training, tuned=t, quantized_image=q))
        for name, what, t, q in (
            ("", "Brevitas, 4-bit weights and activations, in the plain loop, fp32", False, True),
            ("-tuned", "the same with our memory layout (channels last) and our precision", True, True),
            ("-raw", "brevitas-w4a4 with the image left as it is", False, False),
            ("-raw-tuned", "brevitas-w4a4-tuned with the image left as it is", True, False),
        )
    ),
)
