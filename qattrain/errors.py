"""Every mistake a user can make, as one family of exceptions.

QattrainError
  +-- ConfigError       a value, flag, key or file of the configuration
  +-- DataError         a dataset, an image: missing, truncated, corrupt, unreachable
  +-- CheckpointError   a checkpoint: missing, truncated, altered, foreign, of another version
  +-- RecordError       a JSON file of a run, a comparison or a sweep: truncated, altered, of a newer version
  +-- TrainingError     a run that cannot continue: loss not finite, run folder not writable
  +-- ExportError       a model that cannot become integers, or a file that does not equal them
  +-- ReportError       a picture or a page that cannot be made or written

Libraries raise them; only `qattrain.cli.main` catches them, prints one line and exits, with 2 for a ConfigError (the
user asked for something wrong) and 1 for the others (the world refused). A message says what is wrong, the value found,
what is allowed, and the remedy, on one line.
"""

import difflib
import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

Entry = TypeVar("Entry")
LETTERS_TO_BEGIN_WITH = 3  # fewer are the beginning of too much


class QattrainError(Exception):
    """Base of all errors whose cause is the user's input or environment, not a bug."""


class ConfigError(QattrainError):
    """A value of the configuration is not allowed, or does not fit another one."""


class DataError(QattrainError):
    """A dataset or an image cannot be read as what it claims to be."""


class CheckpointError(QattrainError):
    """A checkpoint cannot be read, trusted or written."""


class RecordError(QattrainError):
    """A JSON file that this program wrote cannot be read, trusted or understood."""


class TrainingError(QattrainError):
    """Training cannot start or continue."""


class ExportError(QattrainError):
    """A model has no integer form, or an exported file differs from it."""


class ReportError(QattrainError):
    """A picture or a page cannot be made or written."""


def pick(table: Mapping[str, Entry], name: str, what: str, also: str = "") -> Entry:
    """`table[name]`. Raises ConfigError, `what 'name': allowed: ...`, where there is none; also: further advice."""
    if name not in table:
        raise ConfigError(f"{what} {name!r}: {did_you_mean(name, table)}allowed: {', '.join(table)}{also}")
    return table[name]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'fashion-mnist'? ` for FashionMNIST, to be put before what is allowed; "" if nothing is near."""
    found = nearest(name, known)
    return "" if found is None else f"did you mean {found!r}? "


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is `name` but for case and punctuation, or begins like it, or else looks most like it.

    None if none does.
    """
    by_letters = {_letters(one): one for one in known}
    letters = _letters(name)
    longer = sorted((one for one in by_letters if one.startswith(letters)), key=len)  # the name itself comes first
    found = longer if len(letters) >= LETTERS_TO_BEGIN_WITH or letters in by_letters else []
    found = found or difflib.get_close_matches(letters, by_letters, n=1)
    return by_letters[found[0]] if found else None


def _letters(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def reason(error: BaseException) -> str:
    """Why, on one line: what the system says of an OSError, `no 'key'` for a KeyError, else the error's own words."""
    if isinstance(error, KeyError):
        return f"no {error}"
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


@contextmanager
def system_errors(kind: type[QattrainError], what: str, remedy: str) -> Iterator[None]:
    """Within it an OSError (full disk, no permission) becomes a `kind`: `what: reason; remedy`."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {reason(error)}; {remedy}") from None


# What is true of a place that cannot be written to, by the system's reason; what else to do follows it.
_WHY_NOT_WRITTEN = {
    errno.ENOSPC: "free space there, or ",
    errno.EDQUOT: "free space there, or ",
    errno.ENOENT: "its folder is not there, or was removed; make it, or ",
    errno.EROFS: "what is there can only be read; ",
    errno.EACCES: "allow writing there, or ",
    errno.EPERM: "allow writing there, or ",
    errno.EISDIR: "a folder has that name; remove it, or ",
}


@contextmanager
def write_errors(kind: type[QattrainError], what: str, elsewhere: str) -> Iterator[None]:
    """As `system_errors`, for writing: the remedy fits the reason. elsewhere: such as `choose another --runs-dir`."""
    try:
        yield
    except OSError as error:
        why = _WHY_NOT_WRITTEN.get(error.errno or 0, "")
        raise kind(f"{what}: {reason(error)}; {why}{elsewhere}") from None


@contextmanager
def optional_package(extra: str, what: str, kind: type[QattrainError] = TrainingError) -> Iterator[None]:
    """Imports of the packages of an extra go inside. Raises `kind`, naming `what` needs it, if one is missing."""
    try:
        yield
    except ImportError as error:
        raise kind(
            f"{what}: package {error.name or error} cannot be imported; it comes with: pip install 'qattrain[{extra}]'"
        ) from None


MOST_SHOWN = 200  # characters of a value, in a message


def shortened(text: str) -> str:
    """The text, or its beginning if it is too long for a message of one line."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}... ({len(text):,} characters)"
