"""Pictures as text, as PNG, as SVG: what the network saw, how values are spread, what matplotlib drew."""

import io
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qattrain.errors import ReportError
from qattrain.files import replace_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHADES = " ░▒▓█"
BARS = " ▁▂▃▄▅▆▇█"
PNG_DPI = 120


def picture(image: NDArray[np.uint8]) -> str:
    """uint8 (28, 28) -> 14 lines of 28 characters, one for two pixels, one above the other: text is twice as high."""
    pairs = image.reshape(image.shape[0] // 2, 2, image.shape[1]).astype(np.int64).mean(1)
    shades = np.ceil(pairs * (len(SHADES) - 1) / 255).astype(int)
    return "\n".join("".join(SHADES[shade] for shade in row) for row in shades)


def bars(counts: NDArray[np.int64], width: int, logarithmic: bool = False) -> str:
    """Counts of neighbouring bins, (n,), as one line of at most `width` blocks, the highest full; "" for none.

    Neighbours are added up where there are more than `width`; what is not 0 is never shown as empty.
    """
    if not len(counts):
        return ""
    columns = np.add.reduceat(counts, np.unique(np.arange(width) * len(counts) // width))
    shown = np.log1p(columns) if logarithmic else columns
    heights = np.ceil(shown * (len(BARS) - 1) / max(shown.max(), 1)).astype(int)
    return "".join(BARS[height] for height in heights)


def png(figure: "Figure") -> bytes:
    """The figure as PNG."""
    return saved(figure, "png", dpi=PNG_DPI)


def svg(figure: "Figure") -> bytes:
    """The figure as SVG; the same figure gives the same bytes. Letters are outlines: no font is needed to show it."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "qattrain", "svg.fonttype": "path"}):
        return saved(figure, "svg", metadata={"Date": None})


def saved(figure: "Figure", kind: str, **options: Any) -> bytes:
    """The figure as a file of that kind. A letter of a user's name that the font lacks is no reason to warn."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Laid out once: a second layout starts from the first one's, so that bytes would tell how often it was saved.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()


def write_pictures(folder: Path, figures: dict[str, "Figure"]) -> list[Path]:
    """Write each figure (by its name) as PNG and SVG into `folder`, which is made if need be; all of them or none.

    Returns the paths. Raises ReportError where that cannot be done.
    """
    files = {f"{name}.{kind.__name__}": kind(figure) for name, figure in figures.items() for kind in (png, svg)}
    check_writable(folder)
    try:
        replace_files(folder, files)
    except OSError as error:
        raise ReportError(_unwritable(folder, error)) from None
    return [folder / name for name in files]


def check_writable(folder: Path) -> None:
    """Make `folder`, so that nobody computes for half a minute to learn that it cannot be. Raises ReportError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ReportError(_unwritable(folder, error)) from None


def _unwritable(folder: Path, error: OSError) -> str:
    return f"cannot write pictures into {folder}: {error.strerror or error}; name another folder"
