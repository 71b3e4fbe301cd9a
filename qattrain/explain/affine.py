"""Scale and zero point, step by step."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from qattrain.config import FLOAT_BITS, QuantConfig
from qattrain.explain.lab import MODEL, Explanation, Lab, Table, panels
from qattrain.layers.network import build_model, weight_layers
from qattrain.quant import QTensor, dequantize
from qattrain.quant.quantizers import AffineQuantizer
from qattrain.report.drawing import COLORS

VALUES = (-0.9, -0.65, -0.35, -0.1, 0.0, 0.25, 0.55, 1.3)
BITS = 3
WIDTHS = (8, 6, 4, 3, 2)


@torch.no_grad()
def quantized(x: Tensor, bits: int) -> QTensor:
    """x through a new affine quantizer, whose range is that of x."""
    return AffineQuantizer(bits, role="weight")(x)  # type: ignore[no-any-return]


def measure(x: Tensor, bits: int) -> dict[str, float]:
    """Scale, zero point, and the largest error of x after quantizing and dequantizing, with its bound s/2."""
    q = quantized(x, bits)
    assert q.scale is not None
    scale, error = q.scale.item(), (dequantize(q).double() - x.double()).abs().max().item()
    return {"scale": scale, "zero_point": int(q.zero_point), "largest_error": error, "bound": scale / 2}


def explain(_lab: Lab) -> Explanation:
    """Eight numbers by hand, then the weights of a layer at several widths."""
    x = torch.tensor(VALUES)
    q, mine = quantized(x, BITS), measure(x, BITS)
    scale, zero_point, back = mine["scale"], int(q.zero_point), dequantize(q)
    low, high, qmax = min(VALUES), max(VALUES), 2**BITS - 1
    torch.manual_seed(0)
    weight = weight_layers(build_model(MODEL, QuantConfig(bits=FLOAT_BITS), 10))["fc1"].weight.detach()
    widths = {str(bits): measure(weight, bits) for bits in WIDTHS}
    steps = [
        [f"{v:g}", f"{v / scale:.3f}", f"{v / scale + zero_point:.3f}", f"{int(code)}", f"{r:.4f}", f"{r - v:+.4f}"]
        for v, code, r in zip(VALUES, q.codes, back.tolist(), strict=True)
    ]
    zero = int(q.codes[VALUES.index(0)])
    return Explanation(
        numbers={
            "bits": BITS,
            "values": list(VALUES),
            **mine,
            "codes": [int(code) for code in q.codes],
            "dequantized": back.tolist(),
            "widths": widths,
        },
        tables=[
            Table(
                f"{BITS} bits: s = {scale:.4f}, z = {zero_point}",
                ["x", "x / s", "x / s + z", "code q", "(q - z) s", "error"],
                steps,
            ),
            Table(
                f"fc1 of an untrained lenet-nano, {weight.numel():,} weights",
                ["bits", "z", "s", "largest error", "bound s/2"],
                [
                    [bits, str(f["zero_point"]), *(f"{f[key]:.6f}" for key in ("scale", "largest_error", "bound"))]
                    for bits, f in widths.items()
                ],
            ),
        ],
        answer=[
            f"s = (max - min) / (2^b - 1) = ({high:g} - ({low:g})) / {qmax} = {scale:.4f}: the step between two codes. "
            f"z = round(-min / s) = round({-low / scale:.3f}) = {zero_point}: the code that means 0.",
            "The zero point shifts the grid so that min is near code 0 and, more importantly, so that the real 0 has a "
            f"code of its own (here {zero}, error 0): zero padding and whatever a ReLU sets to 0 stay exactly 0.",
            "Dequantizing, (q - z) s, turns codes back into real values. It is not needed between two layers: the sum "
            "over (q - z), times both scales, is the same number, and the scales become one multiplier and shift "
            "(qattrain explain integer).",
            f"No value within the range is off by more than half a step: measured {mine['largest_error']:.4f}, bound "
            f"{mine['bound']:.4f}. Each bit less doubles s and with it the bound; nothing else in the formula changes. "
            "Whether the network still works is another question (qattrain explain ptq).",
        ],
        look=[
            "qattrain.quant.grid.QTensor (codes, scale, zero point), qattrain.quant.grid.quantize and dequantize",
            "qattrain.quant.quantizers.AffineQuantizer: scale and zero point from the range",
        ],
        paper="Jacob et al. 2018, sections 2.1 and 3.1",
        figure=_figure(x, q, back),
    )


def _figure(x: Tensor, q: QTensor, back: Tensor) -> Figure:
    assert q.scale is not None
    figure, [[stairs, errors]] = panels(f"Affine quantization of eight values, {BITS} bits")
    scale, low, high = q.scale.item(), float(x.min()), float(x.max())
    sweep = torch.cat([torch.linspace(low, high, 4001), x[x == low], x[x == high]]).sort().values
    swept = quantized(sweep, BITS)
    stairs.plot(sweep, sweep, color="black", ls=":", label="x itself")
    stairs.step(sweep, dequantize(swept), color=COLORS[0], label="(q - z) s", where="mid")
    stairs.plot(x, back, "o", color=COLORS[1], label="the eight values")
    for value, code, real in zip(VALUES, q.codes, back.tolist(), strict=True):
        below = (0, -13) if value >= real else (0, 7)
        stairs.annotate(
            f"q={int(code)}", (value, real), xytext=below, textcoords="offset points", ha="center", fontsize=8
        )
    stairs.set(title=f"Quantized and dequantized: s = {scale:.4f}, z = {int(q.zero_point)}", xlabel="x (real value)")
    stairs.set_ylabel("(q - z) s (real value)")
    errors.plot(sweep, dequantize(swept) - sweep, color=COLORS[0], lw=1, label="error of every x in the range")
    errors.plot(x, back - x, "o", color=COLORS[1], label="the eight values")
    for sign in (-1, 1):
        errors.axhline(sign * scale / 2, color="black", ls="--", label="bound: s/2" if sign > 0 else None)
    errors.set(title="Error: never more than half a step", xlabel="x (real value)", ylabel="(q - z) s - x (real value)")
    errors.set_ylim(-0.8 * scale, 0.95 * scale)
    for axes in (stairs, errors):
        axes.legend(fontsize=8, loc="upper left")
    stairs.margins(y=0.12)
    return figure
