"""Text that leaves the tool. Names and paths may come from strangers' files: here what they hide becomes visible.

A control character can clear a terminal or forge a line, a directional one can turn a line around, and a cell that
begins like a formula is one to a spreadsheet. The console, the page of a report and CSV files all write text through
these functions; JSON has escapes of its own and stays exact.
"""

import re

# Control characters (C0, DEL, C1), marks and overrides of direction, separators of lines, halves of surrogate pairs.
_HIDDEN = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of one


def visible(text: str, keep: str = "") -> str:
    r"""`text` with every character that shows nothing, but does something, as an escape: `\x1b`, `\n`, `\u202e`.

    keep: such characters that stay, as "\n" where text of our own has several lines.
    """
    return _HIDDEN.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def csv_cell(value: object) -> object:
    """`value` for a cell of a CSV file: text that a spreadsheet would compute gets a ' in front; numbers stay."""
    if not isinstance(value, str):
        return value
    if value.startswith(FORMULA) and not _is_number(value):
        return "'" + visible(value)
    return visible(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
