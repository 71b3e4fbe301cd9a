"""Filters: float weights and codes share one scale, an outlier flattens nothing, and what cannot be shown is marked."""

import base64
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from qattrain.evaluation.inspection import Observed
from qattrain.report.drawing import png, svg
from qattrain.report.filters import COLORMAP, MOST_KERNELS, Kernels, _ink, filter_figure, filter_tiles, known_kernels


def observed(shape: tuple[int, ...] = (8, 1, 5, 5), bits: int = 4, outlier: float = 0.0, **others: Any) -> Observed:
    weights = np.random.default_rng(0).normal(0, 0.3, shape)
    if outlier:
        weights.flat[7] = outlier
    scale = np.linspace(0.1, 0.2, shape[0]).reshape(-1, 1, 1, 1)
    grid = tuple(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))
    codes = np.clip(np.floor(weights / scale + 0.5), grid[0], grid[-1]).astype(np.int64)
    known = {"values": weights, "codes": codes, "scale": scale, "grid": grid} | others
    return Observed("conv1", "weight", shape, bits, "lsq", **known)


def kernels_of(seen: Observed) -> Kernels:
    (kernels,) = known_kernels(seen)
    return kernels


def drawing(source: str) -> str:
    assert source.startswith("data:image/svg+xml;base64,")
    return base64.b64decode(source.partition(",")[2]).decode()


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_weights_stand_beside_the_codes_in_steps_of_their_channel_on_one_scale_of_colours() -> None:
    seen = observed()
    (_, weights, bound), (_, codes, same) = kernels_of(seen).sides
    assert bound == same
    np.testing.assert_allclose(weights, seen.values / seen.scale)
    assert np.abs(weights - codes)[np.abs(weights) < 7].max() <= 0.5 + 1e-9
    figure = filter_figure(seen, "a network")
    assert len(figure.axes[0].images) == 16
    assert {image.get_clim() for image in figure.axes[0].images} == {(-bound, bound)}


def test_numbers_are_in_the_cells_at_4_bits_and_below_where_there_is_room() -> None:
    seen = observed(bits=4)
    assert texts(filter_figure(seen, "")).count("channel 3") == 1
    assert len(texts(filter_figure(seen, ""))) == 8 + 2 * 200
    assert seen.codes is not None
    tiles = filter_tiles(kernels_of(seen)).tiles
    written = [re.findall("<text.*?>(.*?)</text>", drawing(tile.source)) for tile in tiles]
    for numbers, codes in zip(written, seen.codes, strict=True):
        assert sorted(map(int, numbers)) == sorted(codes.ravel().tolist())
    for other in (observed(bits=5), observed((2, 1, 11, 11)), observed(codes=None, scale=None, grid=())):
        assert not kernels_of(other).is_numbered
        assert len(texts(filter_figure(other, ""))) == other.shape[0]


def test_an_outlier_flattens_nothing_and_is_marked_and_counted() -> None:
    usual, with_outlier = (kernels_of(observed(bits=8, outlier=outlier)) for outlier in (0.0, 12.0))
    bounds = [kernels.sides[0][2] for kernels in (usual, with_outlier)]
    assert bounds[1] < 2 * bounds[0] < np.abs(with_outlier.sides[0][1]).max()
    assert "beyond" not in usual.caption
    assert f"1 value of weight / scale beyond the colours' {bounds[1]:g}, with a marked corner" in with_outlier.caption
    marks = [len(filter_figure(observed(bits=8, outlier=outlier), "").axes[0].patches) for outlier in (0.0, 12.0)]
    assert marks == [0, 2]  # the weight and its code


def test_clipped_weights_are_marked_and_counted() -> None:
    seen = observed(bits=2)
    kernels = kernels_of(seen)
    assert seen.values is not None
    steps = seen.values / seen.scale
    clipped = int(((steps < -2.5) | (steps > 1.5)).sum())
    assert clipped > 10
    assert f"{clipped} weights clipped by the grid" in kernels.caption
    beyond = (np.abs(steps) > kernels.sides[0][2]) & (steps >= -2.5) & (steps <= 1.5)
    marked = sum(drawing(tile.source).count("h.3v.3z") for tile in filter_tiles(kernels).tiles)
    assert marked == clipped + int(beyond.sum())


def test_float_networks_and_packed_files_show_the_one_side_they_have() -> None:
    real = kernels_of(observed(codes=None, scale=None, grid=()))
    assert [name for name, _, _ in real.sides] == ["weight"]
    packed = kernels_of(observed(values=None, scale=None))
    assert [name for name, _, _ in packed.sides] == ["code"]
    assert "left" not in real.caption + packed.caption
    for kernels in (real, packed):
        assert kernels.sides[0][0] in filter_tiles(kernels).tiles[0].words


def test_a_quantizer_that_rescales_weights_gets_colours_for_each_side() -> None:
    kernels = kernels_of(observed(approximates=False))
    (_, weights, bound), (_, _, of_codes) = kernels.sides
    np.testing.assert_allclose(weights, observed().values)
    assert bound < of_codes
    assert "colours of its own" in kernels.caption
    assert "clipped" not in kernels.caption


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((2, 3, 3, 3), ["channel 0, red", "channel 0, green", "channel 0, blue"]),
        ((3, 2, 3, 4), ["channel 0, input 0", "channel 0, input 1", "channel 1, input 0"]),
        ((120, 1, 1, 1), ["channel 0", "channel 1", "channel 2"]),
    ],
)
def test_kernels_of_any_shape_are_drawn_plane_by_plane(shape: tuple[int, ...], names: list[str]) -> None:
    seen = observed(shape)
    kernels = kernels_of(seen)
    planes = min(MOST_KERNELS, shape[0] * shape[1])
    assert kernels.names[:3] == names
    tiles = filter_tiles(kernels)
    assert [tile.lines[0] for tile in tiles.tiles[:3]] == names
    assert len(tiles.tiles) == planes
    assert ("only" in kernels.caption) == (shape[0] * shape[1] > MOST_KERNELS)
    assert len(tiles.table.rows) == 2 * shape[0] * shape[1]  # the table leaves nothing out
    figure = filter_figure(seen, "")
    assert len(figure.axes[0].images) == 2 * planes
    assert png(figure).startswith(b"\x89PNG")


def test_the_picture_is_the_same_twice_and_nothing_in_it_is_cut() -> None:
    seen = observed((3, 1, 5, 5))
    assert svg(filter_figure(seen, "x")) == svg(filter_figure(seen, "x"))
    figure = filter_figure(seen, "a long name " * 8)
    figure.draw_without_rendering()
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width


def test_numbers_can_be_read_on_every_colour() -> None:
    for value in np.linspace(-1, 1, 41):
        linear = [((part + 0.055) / 1.055) ** 2.4 for part in COLORMAP((value + 1) / 2)[:3]]
        luminance = float(np.dot((0.2126, 0.7152, 0.0722), linear))
        contrast = 1.05 / (luminance + 0.05) if _ink(value, 1.0) == "white" else (luminance + 0.05) / 0.05
        assert contrast >= 4.5, value
    middle = COLORMAP(0.5)[:3]
    assert max(middle) - min(middle) < 0.02  # 0 is neutral
