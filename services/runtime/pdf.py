"""How many pages a PDF has, for limits and prices: counted so that nobody gets more pages read than were counted.

Just enough is read for its page trees: every object that is or holds pages, in the file and in its object streams, whatever
the cross-reference table says of them. Of several versions of an object the one with the most pages counts. Time and memory
are bounded by the size of the file, by a number of objects and by what object streams may unpack to.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator

MAX_UNPACKED_BYTES = 64 * 1024 * 1024
MAX_OBJECTS = 200_000
_MAX_DEPTH = 64
_MAX_OBJECT_BYTES = 1024 * 1024
_MAX_DICTIONARY_BYTES = 4096


def _name(text: str) -> bytes:
    """A pattern for a name of PDF, whose letters may each be spelled as `#` and two digits."""
    return b"/" + b"".join(rb"(?:%c|#(?i:%02x))" % (letter, letter) for letter in text.encode()) + rb"(?![A-Za-z0-9])"


# Found by their constant part: a pattern that begins with a number would be tried at every digit of the file.
_OBJECT = re.compile(rb"obj\b")
_OBJECT_NUMBER = re.compile(rb"(?<![\d.])(\d{1,9})\s{1,9}\d{1,5}\s{1,9}$")
_MOST_NUMBER_BYTES = 40
_HAS_KIDS = re.compile(_name("Kids"))
_KIDS = re.compile(_name("Kids") + rb"\s*\[([\d\sR]*)\]")
_REFERENCE = re.compile(rb"(\d{1,9})\s+\d{1,5}\s+R")
_PAGE = re.compile(_name("Type") + rb"\s*" + _name("Page"))
_CATALOG = re.compile(_name("Type") + rb"\s*" + _name("Catalog"))
_ROOT = re.compile(_name("Pages") + rb"\s*(\d{1,9})\s+\d{1,5}\s+R")
_OBJECT_STREAM = re.compile(_name("ObjStm"))
_NUMBERS = {key: re.compile(rb"/%s\s+(\d{1,9})" % key.encode()) for key in ("N", "First")}
_CONTENT = re.compile(rb"stream\r?\n")


def count_pages(content: bytes) -> int | None:
    """Pages of the file; None where that cannot be told (encrypted, damaged, or larger than is looked at)."""
    if b"/Encrypt" in content:
        return None
    tree = _Tree()
    try:
        for number, text in _objects(content):
            tree.add(number, text)
        return tree.pages() or None
    except (ValueError, zlib.error):
        return None


class _Tree:
    """Pages, and what holds them, by the number of the object."""

    def __init__(self) -> None:
        self._versions: defaultdict[int, list[list[int] | None]] = defaultdict(list)  # None is a page
        self._roots: list[int] = []
        self._counted: dict[int, int] = {}

    def add(self, number: int, text: bytes) -> None:
        if _HAS_KIDS.search(text):
            kids = _KIDS.search(text)
            if kids is None:
                # Fields of forms have kids too; a list of pages that stands elsewhere is not followed.
                self._versions[number].append([-1])
            else:
                self._versions[number].append([int(found) for found in _REFERENCE.findall(kids[1])])
        elif _PAGE.search(text):
            self._versions[number].append(None)
        if _CATALOG.search(text) and (root := _ROOT.search(text)):
            self._roots.append(int(root[1]))

    def pages(self) -> int:
        """Raises ValueError for a tree that is none."""
        return max((self._count(root, ()) for root in set(self._roots)), default=0)

    def _count(self, number: int, above: tuple[int, ...]) -> int:
        if number < 0 or number in above or len(above) > _MAX_DEPTH:
            raise ValueError("no page tree")
        if number not in self._counted:
            path = (*above, number)
            # What refers to something that is not there is taken for a page.
            versions = self._versions.get(number, [None])
            self._counted[number] = max(
                1 if kids is None else sum(self._count(kid, path) for kid in kids) for kids in versions
            )
        return self._counted[number]


def _objects(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and text of every object. Raises ValueError for what is not looked at."""
    left_objects, left_bytes = MAX_OBJECTS, MAX_UNPACKED_BYTES
    for number, start, end in _spans(content):
        begins = content.find(b"stream", start, end)
        text = content[start : end if begins < 0 else begins]
        if len(text) > _MAX_OBJECT_BYTES:
            raise ValueError("a larger object than is looked at")
        yield number, text
        left_objects -= 1
        if begins >= 0 and len(text) < _MAX_DICTIONARY_BYTES and _OBJECT_STREAM.search(text):
            unpacked = _unpack(text, content, begins, left_bytes)
            left_bytes -= len(unpacked)
            packed = _packed_objects(text, unpacked)
            left_objects -= len(packed)
            yield from packed
        if left_objects < 0:
            raise ValueError("more objects than are looked at")


def _spans(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Number, beginning and end of what stands between one `obj` and the next."""
    number = start = -1
    for mark in _OBJECT.finditer(content):
        found = _OBJECT_NUMBER.search(content[max(0, mark.start() - _MOST_NUMBER_BYTES) : mark.start()])
        if found is not None:
            if number >= 0:
                yield number, start, mark.start()
            number, start = int(found[1]), mark.end()
    if number >= 0:
        yield number, start, len(content)


def _unpack(dictionary: bytes, content: bytes, begins: int, most_bytes: int) -> bytes:
    data = _CONTENT.match(content, begins)
    if data is None or b"/FlateDecode" not in dictionary or b"/Predictor" in dictionary or b"ASCII" in dictionary:
        raise ValueError("packed in an unusual way")
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(memoryview(content)[data.end() :], most_bytes)
    if unpacker.unconsumed_tail:
        raise ValueError("unpacks to more than is looked at")
    return unpacked


def _packed_objects(dictionary: bytes, unpacked: bytes) -> list[tuple[int, bytes]]:
    count, first = (_NUMBERS[key].search(dictionary) for key in ("N", "First"))
    if count is None or first is None or not 0 < int(count[1]) <= MAX_OBJECTS:
        raise ValueError("an object stream without a list")
    start = int(first[1])
    numbers = [int(word) for word in unpacked[:start].split()[: 2 * int(count[1])]]
    ends = [*numbers[3::2], len(unpacked) - start]
    places = zip(numbers[::2], numbers[1::2], ends, strict=False)
    return [(number, unpacked[start + begin : start + end]) for number, begin, end in places]
