"""Scale and zero point, one step at a time."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from qattrain.config import FLOAT_BITS, QuantConfig
from qattrain.explain.lab import MODEL, Explanation, Lab, Table
from qattrain.layers.network import build_model
from qattrain.quant import QTensor, dequantize
from qattrain.quant.quantizers import AffineQuantizer
from qattrain.report.drawing import COLORS

VALUES = (-0.9, -0.65, -0.35, -0.1, 0.0, 0.25, 0.55, 1.3)
BITS = 3
WIDTHS = (8, 6, 4, 3, 2)


@torch.no_grad()
def quantized(x: Tensor, bits: int) -> QTensor:
    """x through a fresh affine quantizer, whose range is that of x."""
    return AffineQuantizer(bits, role="weight")(x)  # type: ignore[no-any-return]


def measure(x: Tensor, bits: int) -> dict[str, float]:
    """Scale, zero point, and the largest error of x quantized and dequantized, beside its bound s/2."""
    q = quantized(x, bits)
    assert q.scale is not None
    error = (dequantize(q).double() - x.double()).abs().max().item()
    return {
        "scale": q.scale.item(),
        "zero_point": int(q.zero_point),
        "largest_error": error,
        "bound": q.scale.item() / 2,
    }


def explain(_lab: Lab) -> Explanation:
    """Eight numbers by hand, then the weights of a layer at several widths."""
    x = torch.tensor(VALUES)
    q = quantized(x, BITS)
    assert q.scale is not None
    scale, zero_point, back = q.scale.item(), int(q.zero_point), dequantize(q)
    low, high, qmax = min(VALUES), max(VALUES), 2**BITS - 1
    torch.manual_seed(0)
    weight = build_model(MODEL, QuantConfig(bits=FLOAT_BITS), 10).fc1.weight.detach()
    widths = {bits: measure(weight, bits) for bits in WIDTHS}
    steps = [
        [f"{v:g}", f"{v / scale:.3f}", f"{v / scale + zero_point:.3f}", f"{int(code)}", f"{r:.4f}", f"{r - v:+.4f}"]
        for v, code, r in zip(VALUES, q.codes, back.tolist(), strict=True)
    ]
    zero = next(int(code) for v, code in zip(VALUES, q.codes, strict=True) if v == 0)
    mine = measure(x, BITS)
    return Explanation(
        numbers={
            "bits": BITS,
            "values": list(VALUES),
            "scale": scale,
            "zero_point": zero_point,
            "codes": [int(code) for code in q.codes],
            "dequantized": back.tolist(),
            "largest_error": mine["largest_error"],
            "bound": mine["bound"],
            "widths": {str(bits): found for bits, found in widths.items()},
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
                    [str(bits), str(f["zero_point"]), *(f"{f[key]:.6f}" for key in ("scale", "largest_error", "bound"))]
                    for bits, f in widths.items()
                ],
            ),
        ],
        answer=[
            f"s = (max - min) / (2^b - 1) = ({high:g} - ({low:g})) / {qmax} = {scale:.4f}: the distance of two codes. "
            f"z = round(-min / s) = round({-low / scale:.3f}) = {zero_point}: the code that means 0.",
            "The zero point shifts the grid so that min lands near code 0 and, more important, so that the real 0 has "
            f"a code of its own (here {zero}, error 0): zero padding and everything a ReLU cut off stay exactly 0.",
            "Dequantizing, (q - z) s, is how codes become comparable with real values again. Nobody needs it between "
            "two layers: sums of (q - z) times two scales are the same number, and the two scales become one "
            "multiplier and shift (qattrain explain integer).",
            f"No value within the range is off by more than half a step: measured {mine['largest_error']:.4f}, bound "
            f"{mine['bound']:.4f}. Each bit less doubles s, hence the bound: that is all that 4 bits change in the "
            "formula. Whether the network bears it is another question (qattrain explain ptq).",
        ],
        look=[
            "qattrain/quant/grid.py: QTensor (codes, scale, zero point), quantize, dequantize",
            "qattrain/quant/affine.py: scale and zero point from the range",
        ],
        paper="Jacob et al. 2018, sections 2.1 and 3.1",
        figure=_figure(x, q, back),
    )


def _figure(x: Tensor, q: QTensor, back: Tensor) -> Figure:
    assert q.scale is not None
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    stairs, errors = figure.subplots(1, 2)
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
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="upper left")
    stairs.margins(y=0.12)
    figure.suptitle(f"Affine quantization of eight values, {BITS} bits")
    return figure
