"""Whether the files of MNIST and its relatives are the published ones, bit for bit.

A flipped bit in a picture or a label changes what is learned, and nothing else would tell. So every file is compared
when it is read, in the strictest way there is:

mnist, fashion-mnist   the SHA-256 of the file
kmnist                 nobody has published that; but torchvision leaves the archive beside the file, its MD5 is
                       published, and a gzip file ends in the CRC-32 and the length of what was packed
emnist                 as kmnist, in one archive of all splits. Hashing its 560 MB would take longer than reading the
                       images; a zip file has a CRC-32 of every file in it, which is checked instead

Where the archives of kmnist and emnist were deleted, their files are taken as they are.
"""

import contextlib
import hashlib
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qattrain.errors import DataError
from qattrain.files import read_bounded

SHA256 = {
    "mnist": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
ARCHIVE_MD5 = {
    "kmnist": {
        "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
        "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
        "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
        "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
    },
}
EMNIST_ARCHIVE = "gzip.zip"
MOST_ARCHIVE_BYTES = 64_000_000  # of one packed file; the largest has 22 million


def difference(name: str, path: Path, header: bytes, values: NDArray[Any]) -> str:
    """How the file at `path`, `header` followed by `values`, differs from the published one of the set `name`.

    "" if it does not, or if nothing is known about it.
    """
    if name in SHA256:
        digest = hashlib.sha256(header)
        digest.update(values.data)
        found, known = digest.hexdigest(), SHA256[name][path.name]
        return "" if found == known else f"its SHA-256 is {found[:12]}..., the published one {known[:12]}..."
    archive = path.with_name(EMNIST_ARCHIVE if name.startswith("emnist") else f"{path.name}.gz")
    packed = _from_emnist(archive, path.name) if name.startswith("emnist") else _published(name, archive)
    if packed is None:
        return ""
    crc, length = struct.unpack("<II", packed[-8:])
    same = (zlib.crc32(values.data, zlib.crc32(header)), len(header) + len(values)) == (crc, length)
    return "" if same else f"it is not what {archive.name} beside it holds"


def _published(name: str, archive: Path) -> bytes | None:
    """The archive, if it is there, and is the published one."""
    with contextlib.suppress(DataError):
        data = read_bounded(archive, MOST_ARCHIVE_BYTES, DataError, str(archive), "")
        if hashlib.md5(data, usedforsecurity=False).hexdigest() == ARCHIVE_MD5.get(name, {}).get(archive.name):
            return data
    return None


def _from_emnist(archive: Path, name: str) -> bytes | None:
    """The packed file from the archive, if it is there and intact."""
    with contextlib.suppress(OSError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError):
        if archive.is_file():
            with zipfile.ZipFile(archive) as file:
                member = file.getinfo(f"gzip/{name}.gz")
                return file.read(member) if 8 <= member.file_size <= MOST_ARCHIVE_BYTES else None
    return None
