"""Real pictures and sounds made of nothing: small, valid, and different for every seed."""

import array
import base64
import hashlib
import io
import math
import struct
import wave
import zlib

SIDE_PX = 256
CELL_PX = 16
RATE_HZ = 8000


def png(seed: str) -> bytes:
    """A 256 × 256 RGB picture of coloured cells, mirrored so that it looks intended."""
    digest = hashlib.shake_256(seed.encode()).digest(9 + SIDE_PX)
    palette = [digest[0:3], digest[3:6], digest[6:9]]
    cells = SIDE_PX // CELL_PX
    rows = []
    for y in range(cells):
        half = [palette[digest[9 + y * cells + x] % 3] * CELL_PX for x in range(cells // 2)]
        rows.append((b"\x00" + b"".join(half + half[::-1])) * CELL_PX)
    header = struct.pack(">IIBBBBB", SIDE_PX, SIDE_PX, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def wav(seed: str, duration_s: float = 0.5) -> bytes:
    """A mono 16-bit tone at 8 kHz whose pitch comes from the seed."""
    pitch_hz = 220 + hashlib.sha256(seed.encode()).digest()[0] * 2
    step = 2 * math.pi * pitch_hz / RATE_HZ
    samples = array.array("h", (int(9000 * math.sin(step * n)) for n in range(int(RATE_HZ * duration_s))))
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE_HZ)
        sound.writeframes(samples.tobytes())
    return file.getvalue()


def data_url(mime_type: str, content: bytes) -> str:
    """`content` as a base64 data URL."""
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"
