"""Generated files: recognised by content, and named by it."""

import base64
import itertools
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.media import (
    EXTENSIONS,
    PART_BYTES,
    StoredMedia,
    is_media_name,
    media_headers,
    name_in,
    part_count,
    read_media_headers,
)
from services.executor.media import decode_base64, read_media, wrap_pcm
from services.executor.parts import MediaKind, RawMedia
from services.runtime.media_types import dimensions, recognise

SECRET = b"secret-of-the-names"


def png(width: int = 3, height: int = 2, padding: int = 0) -> bytes:
    """A real PNG, made longer by a chunk that viewers skip."""

    def piece(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\x00" + b"\xff\x00\x00" * width for _ in range(height))
    return b"".join((
        b"\x89PNG\r\n\x1a\n", piece(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        piece(b"tEXt", b"x" * padding), piece(b"IDAT", zlib.compress(rows)), piece(b"IEND", b""),
    ))  # fmt: skip


JPEG = (
    b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x01\x00H\x00H\x00\x00" + b"\xff\xdb\x00\x04\x00\x00"
    b"\xff\xc0\x00\x11\x08\x01\x00\x02\x00\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"
)
GIF = b"GIF89a" + struct.pack("<HH", 640, 480) + b"\x00" * 10
WEBP_X = (
    b"RIFF\x00\x00\x00\x00WEBPVP8X" + b"\x00" * 8 + (99).to_bytes(3, "little") + (49).to_bytes(3, "little") + b"\0" * 8
)
WEBP_L = b"RIFF\x00\x00\x00\x00WEBPVP8L\x00\x00\x00\x00\x2f" + struct.pack("<I", 99 | 49 << 14) + b"\0" * 8
WEBP = b"RIFF\x00\x00\x00\x00WEBPVP8 \x00\x00\x00\x00\x00\x00\x00\x9d\x01\x2a" + struct.pack("<HH", 100, 50) + b"\0" * 8
SVG = b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>'
WAV = wrap_pcm(b"\x00\x01" * 100)
MP3 = b"ID3\x03\x00\x00\x00\x00\x00\x0fTIT2"
MP4 = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom"
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"


def raw(content: bytes, kind: MediaKind = "image", declared: str | None = "image/png") -> RawMedia:
    return RawMedia(kind, (base64.b64encode(content).decode(),), declared)


# Recognising ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "mime_type", "size"),
    [
        (png(3, 2), "image/png", (3, 2)),
        (JPEG, "image/jpeg", (512, 256)),
        (GIF, "image/gif", (640, 480)),
        (WEBP, "image/webp", (100, 50)),
        (WEBP_L, "image/webp", (100, 50)),
        (WEBP_X, "image/webp", (100, 50)),
        (SVG, "image/svg+xml", (None, None)),
        (b"\xef\xbb\xbf  <SVG >", "image/svg+xml", (None, None)),
        (WAV, "audio/wav", (None, None)),
        (MP3, "audio/mpeg", (None, None)),
        (MP4, "video/mp4", (None, None)),
        (PDF, "application/pdf", (None, None)),
        (b"MZ\x90\x00 a program", "application/octet-stream", (None, None)),
        (b"<html><script>alert(1)</script></html>", "application/octet-stream", (None, None)),
        (b"just words", "application/octet-stream", (None, None)),
        (b"\x89PNG\r\n\x1a\n", "image/png", (None, None)),
    ],
)
def test_a_file_is_what_its_content_says(content: bytes, mime_type: str, size: tuple[int | None, int | None]) -> None:
    assert recognise(content) == mime_type
    assert dimensions(content, mime_type) == size


@settings(deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF0000WEBPVP8 "]),
)
def test_no_content_breaks_the_recognition(content: bytes, start: bytes) -> None:
    mime_type = recognise(start + content)
    assert mime_type in EXTENSIONS
    dimensions(start + content, mime_type)


@settings(deadline=None)
@given(st.binary(max_size=100), st.lists(st.integers(0, 200), max_size=5), st.booleans())
def test_base64_decodes_however_it_is_cut_and_in_both_alphabets(
    content: bytes, places: list[int], url_safe: bool
) -> None:
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    text = encode(content).decode()
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    pieces = tuple(text[start:end] for start, end in itertools.pairwise(edges))
    assert decode_base64(pieces) == content
    assert decode_base64((text.rstrip("="),)) == content
    assert decode_base64(tuple(f" {piece}\n" for piece in pieces)) == content


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=5))
def test_pieces_that_are_padded_one_by_one_are_one_file(contents: list[bytes]) -> None:
    assert decode_base64(tuple(base64.b64encode(content).decode() for content in contents)) == b"".join(contents)


@pytest.mark.parametrize("text", ["!!!!", "iVBOR", "é", "<svg>"])
def test_what_is_no_base64_is_no_file(text: str) -> None:
    assert decode_base64((text,)) is None
    assert read_media(RawMedia("image", (text,)), SECRET) is None


def test_raw_sound_becomes_a_playable_file_only_where_it_was_declared() -> None:
    samples = b"\x10\x00\x20\x00" * 500
    sound = read_media(raw(samples, "audio", "audio/pcm16"), SECRET)
    assert sound is not None
    assert (sound.kind, sound.mime_type) == ("audio", "audio/wav")
    assert sound.content.startswith(b"RIFF")
    assert struct.unpack_from("<I", sound.content, 24)[0] == 24_000
    assert sound.content.endswith(samples)
    unknown = read_media(raw(samples, "audio", "audio/wav"), SECRET)
    assert unknown is not None
    assert (unknown.kind, unknown.mime_type) == ("file", "application/octet-stream")


def test_names_depend_on_the_content_and_the_secret_alone() -> None:
    one = read_media(raw(png()), SECRET)
    same = read_media(raw(png(), "file", "text/html"), SECRET)
    other = read_media(raw(png()), b"another secret")
    assert one is not None
    assert same is not None
    assert other is not None
    assert one.name == same.name != other.name
    assert is_media_name(one.name)
    assert one.name.endswith(".png")


# The layout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a.png",
        "../" + "0" * 64 + ".png",
        "0" * 64,
        "0" * 64 + ".exe",
        "0" * 64 + ".png/0",
        "A" * 64 + ".png",
        "0" * 64 + ".png\n",
    ],
)
def test_only_names_of_ours_are_names(name: str) -> None:
    assert not is_media_name(name)


@pytest.mark.parametrize("name", ["0" * 64 + ".png", "in-" + "a" * 64 + ".pdf"])
def test_an_address_of_ours_is_a_name_with_or_without_its_host(name: str) -> None:
    ours = "https://x402.example"
    assert name_in(f"{ours}/media/{name}", ours) == name_in(f"/media/{name}", ours) == name
    for other in (name, f"https://evil.example/media/{name}", f"{ours}.evil/media/{name}", f"{ours}/media/{name}?x=1"):
        assert name_in(other, ours) is None


def test_parts_cover_a_file_exactly() -> None:
    assert [part_count(size) for size in (0, 1, PART_BYTES, PART_BYTES + 1, 5 * PART_BYTES)] == [1, 1, 1, 2, 5]


def test_the_headers_of_part_0_come_back() -> None:
    for media in (StoredMedia("image/png", 812_331, 1), StoredMedia("image/png", 3, 1, "user:å")):
        assert read_media_headers(media_headers(media)) == media
    assert read_media_headers(None) is None
    assert read_media_headers({"X402jobs-Bytes": ["many"]}) is None
