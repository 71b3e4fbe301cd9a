"""What `torch.save` writes, looked at before torch reads it: a zip file that holds a pickle and the tensors' bytes.

A digest proves that a file is whole, not that it is ours: anybody can seal anything. torch runs no code from a pickle
(`weights_only`), but it unpacks whatever it is told to. So here, before: nothing is compressed, nothing is listed
that the file does not hold, the pickle has few steps, and these build only tensors and plain values.
"""

import io
import itertools
import pickletools
import zipfile

from qattrain.config.chain import MOST_WEIGHTS
from qattrain.errors import reason

# A checkpoint holds each weight and up to two numbers of the optimizer for it, 4 bytes each, and little else.
MOST_BYTES = 12 * MOST_WEIGHTS + 2**24
MOST_MEMBERS = 2**12  # files in the zip: one for each tensor
MOST_STEPS = 2**19  # of the pickle; an epoch of a run's history takes about 20 of them
PICKLE = "data.pkl"
ENTRY = b"PK\x01\x02"  # before each entry of a zip's directory

# The steps that torch.save writes (those of protocol 2), by the names that `pickletools` gives them.
# fmt: off
STEPS = frozenset((
    "PROTO", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2",
    "LONG1", "BINFLOAT", "BINUNICODE", "GLOBAL", "BINPERSID", "REDUCE", "BUILD", "BINGET", "LONG_BINGET", "BINPUT",
    "LONG_BINPUT"
))
# fmt: on
STORAGES = ("Float", "Double", "Long", "Int", "Byte", "Bool", "BFloat16")
GLOBALS = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict", *(f"torch {kind}Storage" for kind in STORAGES)}


def checked_archive(data: bytes) -> io.BytesIO:
    """The same archive, written anew, for `torch.load`. data: the zip, and maybe something behind it.

    Written anew, because two readers may see two things in one crafted zip: torch gets what was checked here. Raises
    ValueError, with the reason, if it is not as described above.
    """
    if data.count(ENTRY) > MOST_MEMBERS:
        raise ValueError(f"it holds more than {MOST_MEMBERS:,} parts")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("a part of it is compressed")
            total = sum(member.file_size for member in members)
            if total > len(data):
                raise ValueError(f"its parts claim {total:,} bytes")
            copy = io.BytesIO()
            with zipfile.ZipFile(copy, "w") as written:
                for member in members:
                    content = archive.read(member)
                    if member.filename.rpartition("/")[2] == PICKLE:
                        check_pickle(content)
                    written.writestr(zipfile.ZipInfo(member.filename), content)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, UnicodeError, KeyError):
        raise ValueError("its zip file is damaged") from None
    copy.seek(0)
    return copy


def check_pickle(pickle: bytes) -> None:
    """Raises ValueError unless the pickle has few steps, and only such as build tensors and plain values."""
    steps = pickletools.genops(pickle)
    for number in itertools.count(1):
        try:
            step, argument, _ = next(steps)
        except StopIteration:
            return
        except (ValueError, UnicodeError) as error:
            raise ValueError(f"its pickle cannot be read: {reason(error)[:100]}") from None
        if number > MOST_STEPS:
            raise ValueError(f"its pickle has more than {MOST_STEPS:,} steps")
        if step.name not in STEPS:
            raise ValueError(f"its pickle has the step {step.name}")
        if step.name == "GLOBAL" and argument not in GLOBALS:
            raise ValueError(f"its pickle asks for {str(argument)[:60].replace(' ', '.')}")
