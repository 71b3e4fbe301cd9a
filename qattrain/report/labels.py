"""Names in pictures: beside the end of a line, beside a point, never one over another."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

MOST_LABELS, LONGEST_LABEL = 6, 18  # beside the ends of lines; more, or longer ones, go into a legend


def label_lines(axes: Axes, longest: int = LONGEST_LABEL) -> bool:
    """Write the name of every line to the right of the axes, at the height of its last point and in its colour.

    Names that would overlap are moved apart. False, and nothing is written: there are too many lines, a name is longer
    than that, or something is no line; then a legend is needed. The limits of the axes must be final.
    """
    ends, axes_from_pixels = [], axes.transAxes.inverted()
    axes.get_ylim()  # which settles the limits
    for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
        line = handle[0] if isinstance(handle, ErrorbarContainer) else handle
        if not isinstance(line, Line2D) or line.get_linestyle() == "None" or len(name) > longest:
            return False
        last = line.get_transform().transform([(np.asarray(line.get_xdata())[-1], np.asarray(line.get_ydata())[-1])])
        ends.append((name, axes_from_pixels.transform(last)[0], line.get_color()))
    if not 1 <= len(ends) <= MOST_LABELS:
        return False
    places = apart([float(end[1]) for _, end, _ in ends], 12 / size_points(axes)[1])
    for (name, end, color), place in zip(ends, places, strict=True):
        axes.annotate(
            name,
            tuple(end),
            (1.03, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=color,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.6, "shrinkA": 1, "shrinkB": 3},
        )
    return True


def size_points(axes: Axes) -> tuple[float, float]:
    """Width and height of the axes in points, about: the layout of the figure may still change them a little."""
    assert isinstance(axes.figure, Figure)
    width, height = 72 * axes.figure.get_size_inches() * axes.get_position().size
    return float(width), float(height)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Numbers near these, in the same order, and at least `gap` apart; where there is room, between 0 and 1."""
    order = sorted(range(len(places)), key=lambda index: (places[index], -index))
    groups: list[tuple[list[int], float]] = []  # (members, the place of their middle)
    for index in order:
        members, middle = [index], min(max(places[index], 0.0), 1.0)
        while groups and middle - gap * (len(members) - 1) / 2 < groups[-1][1] + gap * (len(groups[-1][0]) + 1) / 2:
            before, its_middle = groups.pop()
            middle = (middle * len(members) + its_middle * len(before)) / (len(members) + len(before))
            members = before + members
            room = gap * (len(members) - 1) / 2
            middle = max(min(middle, 1 - room), room)
        groups.append((members, middle))
    found = {
        index: middle + gap * (number - (len(members) - 1) / 2)
        for members, middle in groups
        for number, index in enumerate(members)
    }
    return [found[index] for index in range(len(places))]


def name_points(axes: Axes, points: Sequence[tuple[str, float, float, str]]) -> None:
    """Write the name of each point (name, x, y, colour) beside it, where it covers no other point and no other name.

    A name farther away is joined to its point by a line. The limits of the axes must be final.
    """
    axes.get_xlim(), axes.get_ylim()  # which settles the limits
    width, height = size_points(axes)
    to_points = axes.transData + axes.transAxes.inverted()
    places = [to_points.transform((x, y)) * (width, height) for _, x, y, _ in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    for (name, x, y, color), (left, low) in zip(points, places, strict=True):
        long = 4.6 * len(name)  # at a size of 8 points
        tried: list[tuple[Any, ...]] = []
        for far in (6, 14, 24, 36, 50):
            for right, up in product((far, -far, 0), (far, -far, 0)):
                start = left + right - (long if right < 0 else long / 2 if right == 0 else 0)
                box = (start, low + up - 5, start + long, low + up + 5)
                covered = sum(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
                outside = box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height
                tried.append((covered + 2 * outside, far, len(tried), (right, up), box))
        _, far, _, offset, box = min(tried)
        taken.append(box)
        axes.annotate(
            name,
            (x, y),
            offset,
            textcoords="offset points",
            fontsize=8,
            color=color,
            ha="right" if offset[0] < 0 else "center" if offset[0] == 0 else "left",
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "shrinkA": 0, "shrinkB": 3} if far > 6 else None,
        )
