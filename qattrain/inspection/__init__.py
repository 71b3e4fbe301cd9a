"""A network looked at from inside: numbers for every layer, and the data of every picture. Draws and prints nothing.

observed   one look: every layer's values before and after quantization
layers     a report per layer of weights and of activations
histograms where the values lie, and where the grid puts them
errors     confusions, and the images it is most wrong about
"""

from dataclasses import dataclass

import torch

from qattrain.data import ImageSet
from qattrain.errors import ExportError
from qattrain.inspection.errors import Confusion, HardImage, confusion, hardest_images
from qattrain.inspection.histograms import Filters, LayerHistogram, first_layer_filters, layer_histogram
from qattrain.inspection.layers import LayerReport, layer_report
from qattrain.inspection.observed import INSPECTED_IMAGES, Observed, observe, probabilities
from qattrain.networks import Network, Packed

__all__ = [
    "INSPECTED_IMAGES",
    "Confusion",
    "Filters",
    "HardImage",
    "Inspection",
    "LayerHistogram",
    "LayerReport",
    "Observed",
    "inspect_network",
    "layer_histogram",
    "layer_report",
    "observe",
]


@dataclass(frozen=True, eq=False)
class Inspection:
    """All there is to see of one network.

    layers, histograms: in the order of the network, one each for weights and for activations (histograms of
    activations only where images were at hand). confusion: None without images. hardest: the worst first, empty without
    images. accuracy: fraction of the `images` test images, None if there were none. notes: what is left out, and why.
    """

    title: str
    layers: list[LayerReport]
    histograms: list[LayerHistogram]
    filters: Filters
    confusion: Confusion | None
    hardest: list[HardImage]
    accuracy: float | None
    images: int
    notes: list[str]


@torch.no_grad()
def inspect_network(network: Network, test: ImageSet | None, title: str = "") -> Inspection:
    """Look at `network`, on the CPU.

    test: images for everything that depends on data; activations are those of the first 1,000. None: weights only.
    title: what pictures call the network; its model and dataset if left out.
    """
    facts = network.facts
    layers = observe(network, None if test is None else test.images[:INSPECTED_IMAGES])
    bounds = _bounds(network)
    notes = []
    if isinstance(network, Packed):
        notes.append(
            "a packed file holds only integers: float weights, activations before quantization, scales, clipped "
            "shares and signal-to-noise ratios are not in it"
        )
    if test is None:
        notes.append(f"no images of {facts.dataset}: activations, confusions and hardest images are left out")
    found = None if test is None else probabilities(network, test.images)
    return Inspection(
        title=title or f"{facts.name} on {facts.dataset}",
        layers=[layer_report(layer, bounds.get(layer.layer)) for layer in layers],
        histograms=[layer_histogram(layer) for layer in layers if layer.values is not None or layer.codes is not None],
        filters=first_layer_filters(layers[0]),
        confusion=None if found is None or test is None else confusion(found, test.labels, facts.class_names),
        hardest=[] if found is None or test is None else hardest_images(found, test, facts.class_names),
        accuracy=None if found is None or test is None else (found.argmax(1) == test.labels).double().mean().item(),
        images=0 if test is None else len(test.labels),
        notes=notes,
    )


def _bounds(network: Network) -> dict[str, int]:
    """The accumulator bound of every layer that computes on integers; none where a layer is float."""
    try:
        return {layer.name: layer.accumulator_bound for layer in network.integers().layers} if network.quantized else {}
    except ExportError:  # sums beyond int32: the layers can be looked at all the same
        return {}
