"""The cliff: quantizing after training compared with training with quantization, from 8 bits to 1."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qattrain.config import FLOAT_BITS, QuantConfig
from qattrain.explain.lab import AUGMENT, CALIBRATION_IMAGES, Explanation, Lab, Table, panels
from qattrain.report.console import counted, percent
from qattrain.report.drawing import LOOKS, method_style
from qattrain.report.labels import label_lines

PTQ_BITS = (8, 7, 6, 5, 4, 3, 2, 1)
QAT_BITS = (8, 6, 4, 3, 2, 1)
EPOCHS = 10


def measure(lab: Lab, ptq_bits: tuple[int, ...], qat_bits: tuple[int, ...]) -> dict[str, dict[int, float]]:
    """Test accuracies by method and bits (of weights and activations; float: 32), all with seed 0.

    Every PTQ network is made from the same float network, affine with min-max ranges. Every QAT network is trained from
    scratch for as many epochs, with the defaults of `qattrain train`.
    """
    float_model = lab.train(QuantConfig(bits=FLOAT_BITS), EPOCHS, augment=AUGMENT)
    ptq = {}
    for bits in ptq_bits:
        model = lab.quantized_after_training(float_model, QuantConfig(quantizer="affine", bits=bits))
        ptq[bits] = lab.accuracy(model)
    qat = {bits: lab.accuracy(lab.train(QuantConfig(bits=bits), EPOCHS, augment=AUGMENT)) for bits in qat_bits}
    return {"float": {FLOAT_BITS: lab.accuracy(float_model)}, "ptq": ptq, "qat": qat}


def explain(lab: Lab, ptq_bits: tuple[int, ...] = PTQ_BITS, qat_bits: tuple[int, ...] = QAT_BITS) -> Explanation:
    """The accuracy curves. ptq_bits, qat_bits: the points to measure; both must contain 2."""
    found = measure(lab, ptq_bits, qat_bits)
    reference, ptq, qat = found["float"][FLOAT_BITS], found["ptq"], found["qat"]
    highest = max(set(ptq) & set(qat))
    rows = [[str(bits), percent(ptq[bits]), percent(qat[bits]) if bits in qat else "-"] for bits in sorted(ptq)]
    holds = [bits for bits in ptq if ptq[bits] >= reference - 0.01]
    lasting = f"down to {min(holds)} bits" if holds else "at no width"
    return Explanation(
        numbers={
            "data": lab.data_line,
            "epochs": EPOCHS,
            "float": reference,
            "ptq": {str(bits): accuracy for bits, accuracy in ptq.items()},
            "qat": {str(bits): accuracy for bits, accuracy in qat.items()},
        },
        tables=[
            Table(
                f"test accuracy, weights and activations at the same bits; float {percent(reference)}; {lab.data_line}",
                ["bits", "PTQ (affine, min-max)", "QAT (lsq)"],
                rows,
            )
        ],
        answer=[
            f"Rounded to {highest} bits after training, the network has {percent(ptq[highest])}; in float it had "
            f"{percent(reference)}. Rounding as such is not harmless, but {2**highest} levels are many: a rounded "
            f"weight is off by at most half a step, and a step is 1/{2**highest - 1} of the range.",
            f"Every bit less doubles the step. PTQ stays within one percentage point of float {lasting}; at 2 bits it "
            f"has {percent(ptq[2])}, because the network never saw rounding errors that large.",
            f"With QAT it sees them in training: {percent(qat[2])} at 2 bits, {100 * (qat[2] - ptq[2]):.1f} points "
            f"more, in the same {EPOCHS} epochs. For 4 bits and below, train with the rounding in the forward pass. "
            "Rounding a finished network ('hard quantization') is a different method.",
        ],
        look=[
            "qattrain.training.ptq.calibrate: all there is to PTQ (ranges from images); try --calibration mse",
            "qattrain.layers.QuantLinear.quantized_weight: the rounding in the forward pass of training",
            "your own networks: qattrain compare fp32 vs ptq vs qat --bits 2",
        ],
        paper="Jacob et al. 2018 (PTQ and QAT at 8 bits); Esser et al. 2020 (LSQ); Nagel et al. 2021 (overview)",
        figure=_figure(found, lab.data_line),
    )


def _figure(found: dict[str, dict[int, float]], data: str) -> Figure:
    fewest, reference = min(set(found["ptq"]) & set(found["qat"])), 100 * found["float"][FLOAT_BITS]
    trained, rounded = 100 * found["qat"][fewest], 100 * found["ptq"][fewest]
    title = f"At {counted(fewest, 'bit')}, QAT has {trained:.1f} % and PTQ {rounded:.1f} %; float has {reference:.1f} %"
    figure, [[axes]] = panels(title, columns=1, size=(6.6, 4.2))
    axes.axhline(reference, color=LOOKS["float"].color, ls=":", label="float")
    for name, quantizer in (("QAT", "lsq"), ("PTQ", "affine")):
        points = sorted(found[name.lower()].items())
        style = method_style(name)
        axes.plot(
            [bits for bits, _ in points], [100 * value for _, value in points], label=f"{name} ({quantizer})", **style
        )
    axes.set_title(f"{data}; {counted(EPOCHS, 'epoch')};\nPTQ calibrated on {CALIBRATION_IMAGES} images", fontsize=9)
    axes.set(xlabel="bits of weights and activations", ylabel="test accuracy (%)", ylim=(0, 103))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_lines(axes)
    return figure
