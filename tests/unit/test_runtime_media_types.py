"""Files that callers send: what they are by their content, and how many pages a PDF has, however it hides them."""

import struct
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.attachments import MAX_IMAGE_PIXELS, MAX_PDF_PAGES
from services.runtime.media_types import FileFacts, examine, is_sendable
from services.runtime.pdf import MAX_OBJECTS, MAX_UNPACKED_BYTES, count_pages
from tests.unit.test_executor_media import GIF, JPEG, MP3, MP4, SVG, WAV, WEBP, png

CATALOG = b"1 0 obj\n<</Type/Catalog/Pages 2 0 R>>\nendobj\n"
PAGE = b"<</Type/Page/Parent 2 0 R>>"


def kids(*numbers: int) -> bytes:
    return b"<</Type/Pages/Kids[" + b" ".join(b"%d 0 R" % number for number in numbers) + b"]>>"


def pdf(*objects: tuple[int, bytes]) -> bytes:
    return b"%PDF-1.7\n" + CATALOG + b"".join(b"%d 0 obj\n%s\nendobj\n" % each for each in objects) + b"%%EOF\n"


def packed(*objects: tuple[int, bytes], data: bytes | None = None) -> bytes:
    """A PDF whose objects are in a compressed stream, as writers since 2003 make it."""
    head, body = b"", b""
    for number, text in objects:
        head += b"%d %d " % (number, len(body))
        body += text + b"\n"
    stream = zlib.compress(head + body) if data is None else data
    dictionary = b"<</Type/ObjStm/N %d/First %d/Filter/FlateDecode/Length %d>>" % (len(objects), len(head), len(stream))
    return pdf((90, dictionary + b"\nstream\n" + stream + b"\nendstream"))


def pages(count: int) -> list[tuple[int, bytes]]:
    return [(2, kids(*range(3, 3 + count))), *((number, PAGE) for number in range(3, 3 + count))]


@pytest.mark.parametrize("count", [1, 2, 137])
def test_pages_are_counted_in_the_open_and_in_object_streams(count: int) -> None:
    assert count_pages(pdf(*pages(count))) == count
    assert count_pages(packed(*pages(count))) == count


def test_a_tree_is_counted_by_what_hangs_on_it() -> None:
    assert count_pages(pdf((2, kids(3, 4)), (3, kids(5, 5, 5)), (4, kids(3, 3)), (5, PAGE))) == 3 + 2 * 3
    assert count_pages(pdf((2, b"<</Type/P#61ges/K#69ds[3 0 R]>>"), (3, b"<</Type /P#61#67e>>"))) == 1
    assert count_pages(pdf((2, kids(3, 4, 5)))) == 3, "what is not there may be a page"
    assert count_pages(pdf(*pages(2), (2, kids(3)))) == 2, "of two versions the one with more pages"
    form = (50, b"<</T(name)/Kids[60 0 R 61 0 R 62 0 R]>>")
    assert count_pages(pdf(*pages(2), form)) == 2, "fields of forms have kids as well"


@pytest.mark.parametrize(
    "content",
    [
        b"%PDF-1.7\n",
        pdf((2, kids(2))),
        pdf((2, kids(3)), (3, kids(2))),
        pdf((2, b"<</Type/Pages/Kids 9 0 R>>")),
        pdf(*pages(2)).replace(b"%%EOF", b"trailer<</Encrypt 8 0 R>>"),
        pdf(*((number, kids(number + 1)) for number in range(2, 200))),
        packed(*pages(2), data=b"not compressed"),
        packed(*pages(2), data=zlib.compress(b" " * (MAX_UNPACKED_BYTES + 1))),
        packed(*pages(2)).replace(b"/FlateDecode", b"/LZWDecode"),
        b"%PDF-1.7\n" + b"1 0 obj " * (MAX_OBJECTS + 2),
    ],
)
def test_what_cannot_be_counted_is_not_guessed(content: bytes) -> None:
    assert count_pages(content) is None


def test_a_million_pages_by_repetition_are_seen_at_once() -> None:
    levels = [(number, kids(*[number + 1] * 10)) for number in range(2, 8)]
    assert count_pages(pdf(*levels, (8, PAGE))) == 10**6


@given(st.binary(max_size=300))
def test_no_content_breaks_the_count(content: bytes) -> None:
    for whole in (content, b"%PDF-1.7\n" + CATALOG + content, packed(data=zlib.compress(content))):
        count_pages(whole)


@pytest.mark.parametrize(
    "hostile",
    [
        b"1 0 obj",
        b"/Kids [",
        b"1 ",
        b" ",
        b"obj",
        b"1 0 obj/Kids[1 0 R 1 0 R",
        b"/Type",
        b"stream\n",
        b"1 0 obj stream",
    ],
)
def test_time_grows_with_the_size_of_the_file_and_not_faster(hostile: bytes) -> None:
    """Sixteen times as much may take sixteen times as long, with room for a busy machine; squared it would be 256."""

    def took_s(size: int) -> float:
        content = b"%PDF-1.7\n" + hostile * (size // len(hostile))
        began_s = time.process_time()
        count_pages(content)
        return time.process_time() - began_s

    assert took_s(1_600_000) < 100 * max(took_s(100_000), 0.005)


# Everything that may be sent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (png(3, 2), FileFacts("image/png", 3, 2)),
        (JPEG, FileFacts("image/jpeg", 512, 256)),
        (GIF, FileFacts("image/gif", 640, 480)),
        (WEBP, FileFacts("image/webp", 100, 50)),
        (WAV, FileFacts("audio/wav")),
        (MP3, FileFacts("audio/mpeg")),
        (pdf(*pages(2)), FileFacts("application/pdf", pages=2)),
    ],
)
def test_the_facts_of_a_file_come_from_its_content(content: bytes, facts: FileFacts) -> None:
    assert examine([content]) == facts
    assert is_sendable(content)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (SVG, "no type that can be sent"),
        (MP4, "no type that can be sent"),
        (b"words", "no type that can be sent"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read"),
        (GIF[:6] + struct.pack("<HH", 0, 0) + GIF[10:], "cannot be read"),
        (GIF[:6] + struct.pack("<HH", 8000, 8000) + GIF[10:], f"{MAX_IMAGE_PIXELS // 10**6} million pixels"),
        (pdf(*pages(MAX_PDF_PAGES + 1)), f"more than {MAX_PDF_PAGES} pages"),
        (b"%PDF-1.7\n", "cannot be counted"),
    ],
)
def test_what_may_not_be_sent_is_said_in_a_sentence(content: bytes, sentence: str) -> None:
    refused = examine([content])
    assert isinstance(refused, str)
    assert sentence in refused


def test_a_pdf_is_looked_at_over_all_its_parts() -> None:
    content = pdf(*pages(150))
    assert examine([content[:1000], content[1000:2000], content[2000:]]) == FileFacts("application/pdf", pages=150)
