"""A matplotlib figure as part of a page: its colours follow the page's, and it is read aloud by its title.

Colours become CSS variables, so that one drawing serves light and dark; black is the colour of the text.
"""

import re
from xml.etree import ElementTree

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

from qattrain.report.figures import COLORS
from qattrain.report.inspection_figures import BEFORE
from qattrain.report.picture import saved

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
VARIABLES = {color.lower(): f"var(--series-{index})" for index, color in enumerate(COLORS)} | {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    "#b0b0b0": "var(--muted)",  # matplotlib's own, of grid lines
    BEFORE: "var(--faint)",
}


def inline_svg(figure: Figure, ident: str, title: str, description: str) -> Markup:
    """The figure as an `<svg role="img">` for a page. ident: unique in the page, of letters, digits and hyphens."""
    assert re.fullmatch(r"[\w-]+", ident), ident
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "qattrain"}):  # text stays text; ids do not change
        root = ElementTree.fromstring(saved(figure, "svg", transparent=True, metadata={"Date": None}))
    for element in root.findall(f"{{{SVG}}}metadata"):
        root.remove(element)
    for defs in root.findall(f"{{{SVG}}}defs"):
        for sheet in defs.findall(f"{{{SVG}}}style"):  # it would hold for the whole page
            defs.remove(sheet)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', ElementTree.tostring(root, encoding="unicode")))
    for element in root.iter():
        _dress(element, ident, used)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{ident}-title {ident}-desc",
    }
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    drawn = ElementTree.tostring(root, encoding="unicode")
    drawn = re.sub(r"\s*\n\s*", " ", drawn).replace("> <", "><")
    head, _, body = drawn.partition(">")
    named = f'<title id="{ident}-title">{escape(title)}</title><desc id="{ident}-desc">{escape(description)}</desc>'
    return Markup(f"{head}>{named}{body}")  # ElementTree escaped what matplotlib drew


def _dress(element: ElementTree.Element, ident: str, used: set[str]) -> None:
    """Colours to variables; ids that nobody refers to away, the others made unique in the page."""
    attributes = element.attrib
    name = attributes.pop("id", None)
    if name in used:
        attributes["id"] = f"{ident}-{name}"
    for key in (f"{{{XLINK}}}href", "clip-path"):
        if "#" in attributes.get(key, ""):
            attributes[key] = attributes[key].replace("#", f"#{ident}-")
    if "style" in attributes:
        style = re.sub(r"font: (?:[a-z]+ )*([\d.]+px)[^;]*", r"font-size: \1", attributes["style"])  # before 3.10
        style = re.sub(r"; font-family: [^;]*", "", style)  # the page's own
        style = re.sub(r"#[0-9a-f]{6}", lambda color: VARIABLES.get(color[0], color[0]), style)
        attributes["style"] = style
