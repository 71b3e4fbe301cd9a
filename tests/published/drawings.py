"""Draws the digits that `qattrain playground` ships: its examples, and what its page checks itself on. No dataset's.

    python tests/published/drawings.py

The strokes of ten digits are bent at random, drawn, and prepared as `qattrain predict` prepares pictures. Kept are
three of each digit as they come, and fourteen on which the shipped networks disagree. Deterministic.
"""

import io
import sys
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.interpolate import make_interp_spline

from qattrain.data.pictures import read_image
from qattrain.export.page_export import trace
from qattrain.export.page_shipped import DRAWINGS, shipped_entries

# Of every digit its strokes: points that the pen passes, x to the right and y down, in a box of side 1.
STROKES = {
    0: [[(0.5, 0.05), (0.24, 0.22), (0.2, 0.6), (0.42, 0.95), (0.72, 0.8), (0.8, 0.4), (0.68, 0.1), (0.45, 0.06)]],
    1: [[(0.34, 0.27), (0.46, 0.16), (0.56, 0.05), (0.55, 0.5), (0.54, 0.96)]],
    2: [[(0.2, 0.28), (0.3, 0.1), (0.55, 0.05), (0.78, 0.2), (0.7, 0.45), (0.45, 0.7), (0.17, 0.93)],
        [(0.17, 0.93), (0.5, 0.91), (0.86, 0.93)]],
    3: [[(0.2, 0.15), (0.5, 0.05), (0.75, 0.2), (0.65, 0.4), (0.42, 0.47)],
        [(0.42, 0.47), (0.72, 0.53), (0.8, 0.74), (0.58, 0.95), (0.2, 0.87)]],
    4: [[(0.34, 0.05), (0.24, 0.35), (0.18, 0.58)], [(0.18, 0.58), (0.5, 0.59), (0.86, 0.56)],
        [(0.66, 0.28), (0.64, 0.97)]],
    5: [[(0.76, 0.07), (0.3, 0.08)], [(0.3, 0.08), (0.25, 0.43)],
        [(0.25, 0.43), (0.55, 0.38), (0.8, 0.6), (0.72, 0.86), (0.45, 0.96), (0.18, 0.87)]],
    6: [[(0.68, 0.05), (0.4, 0.25), (0.22, 0.6), (0.3, 0.88), (0.55, 0.95), (0.75, 0.78), (0.65, 0.57), (0.4, 0.57),
         (0.25, 0.73)]],
    7: [[(0.18, 0.1), (0.5, 0.09), (0.82, 0.08)], [(0.82, 0.08), (0.6, 0.45), (0.45, 0.95)]],
    8: [[(0.7, 0.2), (0.5, 0.05), (0.28, 0.18), (0.38, 0.4), (0.62, 0.55), (0.75, 0.78), (0.5, 0.95), (0.26, 0.8),
         (0.38, 0.55), (0.62, 0.4), (0.71, 0.2)]],
    9: [[(0.72, 0.3), (0.55, 0.07), (0.28, 0.2), (0.3, 0.45), (0.55, 0.5), (0.72, 0.3), (0.72, 0.6), (0.6, 0.95)]],
}  # fmt: skip
SIDE, SHARPER = 280, 2  # of the canvas; drawn larger first, for smooth edges
CANDIDATES, PLAIN, DIVISIVE = 3000, 30, 14
FAVOURED = 6  # networks of the eight that are right about a drawing that divides them
WILDNESS = 1.9  # of candidates


def drawn(digit: int, random: np.random.Generator, wildness: float) -> NDArray[np.uint8]:
    """An image (1, 28, 28) of the digit, the further from its usual form the larger wildness is."""
    canvas = Image.new("L", (SIDE * SHARPER, SIDE * SHARPER))
    pen = ImageDraw.Draw(canvas)
    width = random.uniform(16, 30) * SHARPER
    turn, shear = random.normal(0, 0.12 * wildness), random.normal(0, 0.15 * wildness)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.array([[1, -shear], [0, 1]])
    scale = np.array([random.uniform(0.55, 0.9), random.uniform(0.8, 1)]) * 0.65 * SIDE * SHARPER
    for stroke in STROKES[digit]:
        points = np.array(stroke) + random.normal(0, 0.025 * wildness, (len(stroke), 2))
        curve = make_interp_spline(np.arange(len(points)), points, k=min(3, len(points) - 1))
        path = curve(np.linspace(0, len(points) - 1, 20 * len(points))) - 0.5
        path = (path @ turned.T) * scale + SIDE * SHARPER / 2
        for x, y in path:
            pen.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=255)
    file = io.BytesIO()
    canvas.resize((SIDE, SIDE), Image.Resampling.BOX).save(file, "PNG")
    return read_image(file.getvalue(), "a drawing").image


def main() -> None:
    random = np.random.default_rng(1)
    labels = np.arange(CANDIDATES) % 10
    images = np.stack([drawn(int(digit), random, 1 if n < PLAIN else WILDNESS) for n, digit in enumerate(labels)])
    answers = np.stack([trace(entry.model, images).logits.argmax(1) for entry in shipped_entries()])
    right = answers == labels
    # Networks of few bits are wrong and those of more bits right, with one change from one to the other.
    divisive = right[-1] & ((right[1:] != right[:-1]).sum(0) == 1) & (np.arange(CANDIDATES) >= PLAIN)
    order = np.argsort(abs(right.sum(0) - FAVOURED), kind="stable")
    turns: dict[int, list[int]] = {digit: [] for digit in range(10)}
    for index in order[divisive[order]]:
        turns[int(labels[index])].append(int(index))
    # Of as many digits as possible: the best of each, then the second of each.
    ranked = [index for turn in zip_longest(*turns.values()) for index in turn if index is not None]
    kept = [*range(PLAIN), *ranked[:DIVISIVE]]
    np.savez_compressed(DRAWINGS, images=images[kept], labels=labels[kept])
    sys.stderr.write(f"{divisive.sum()} of {CANDIDATES} divide the networks; wrote {DRAWINGS.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
