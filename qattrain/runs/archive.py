"""What `torch.save` writes, looked at before torch reads it: a zip file that holds a pickle and the tensors' bytes.

A digest proves that a file is whole, not that it is ours: anybody can seal anything. torch runs no code from a pickle
(`weights_only`), but it unpacks whatever it is told to. So here, before: nothing is compressed, nothing is listed
that the file does not hold, the pickle has few steps, and these build only tensors and plain values.
"""

import io
import zipfile

from qattrain.config.chain import MOST_WEIGHTS

# A checkpoint holds each weight and up to two numbers of the optimizer for it, 4 bytes each, and little else.
MOST_BYTES = 12 * MOST_WEIGHTS + 2**24
MOST_MEMBERS = 2**12  # files in the zip: one for each tensor
MOST_STEPS = 2**19  # of the pickle; an epoch of a run's history takes about 20 of them
PICKLE = "data.pkl"
ENTRY = b"PK\x01\x02"  # before each entry of a zip's directory

# The steps that torch.save writes: how many bytes follow each; of those below, how many bytes the length of it takes.
_FIXED = {
    b"(": 0,
    b")": 0,
    b"}": 0,
    b"]": 0,
    b"t": 0,
    b"a": 0,
    b"e": 0,
    b"s": 0,
    b"u": 0,
    b"N": 0,
    b"Q": 0,
    b"R": 0,
    b"b": 0,
}
_FIXED |= {b"\x85": 0, b"\x86": 0, b"\x87": 0, b"\x88": 0, b"\x89": 0, b"\x80": 1, b"K": 1, b"q": 1, b"h": 1}
_FIXED |= {b"M": 2, b"J": 4, b"r": 4, b"j": 4, b"G": 8}
_BYTES_AFTER = [_FIXED.get(bytes([code]), -1) for code in range(256)]
_TEXT, _LONG, _GLOBAL, _STOP = ord("X"), 0x8A, ord("c"), ord(".")
_BUILDERS = (b"torch._utils _rebuild_tensor_v2", b"collections OrderedDict")
_STORAGES = tuple(
    b"torch %sStorage" % kind for kind in (b"Float", b"Double", b"Long", b"Int", b"Byte", b"Bool", b"BFloat16")
)


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


def check_pickle(steps: bytes) -> None:
    """Raises ValueError unless the pickle has few steps, and only such as build tensors and plain values."""
    position, count, after = 0, 0, _BYTES_AFTER
    try:
        while (code := steps[position]) != _STOP:
            count += 1
            if count > MOST_STEPS:
                raise ValueError(f"its pickle has more than {MOST_STEPS:,} steps")
            position += 1
            if (skipped := after[code]) >= 0:
                position += skipped
            elif code == _TEXT:
                position += 4 + int.from_bytes(steps[position : position + 4], "little")
            elif code == _LONG:
                position += 1 + steps[position]
            elif code == _GLOBAL:
                position = _after_name(steps, position)
            else:
                raise ValueError(f"its pickle has the step {bytes([code])!r}")
    except IndexError:
        raise ValueError("its pickle does not end") from None


def _after_name(steps: bytes, position: int) -> int:
    """Where the step ends that names a class or function: two lines, which must be those of something allowed."""
    end = steps.find(b"\n", steps.find(b"\n", position) + 1)
    name = steps[position:end].replace(b"\n", b" ")
    if name not in _BUILDERS and name not in _STORAGES:
        shown = name[:60].decode("ascii", "backslashreplace").replace(" ", ".")
        raise ValueError(f"its pickle asks for {shown}")
    return end + 1
