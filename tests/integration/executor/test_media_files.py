"""Files in a real object store and their index in a real Postgres: stored once, readable in parts, kept as long as needed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import asyncpg
import httpx
import orjson
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from contracts.attachments import MAX_ATTACHED_BYTES, ClaimMedia
from contracts.base import new_execution_id
from contracts.catalog import InputField, Timeouts
from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Caller, MediaPart, OtherPart
from contracts.media import PART_BYTES, StoredMedia, media_path, part_count, part_name
from contracts.subjects import INPUTS_BUCKET, MEDIA_BUCKET
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from deploy.sandbox import app as sandbox
from services.executor.attachments import Attachment, Attachments, Payload, content_part
from services.executor.faults import UpstreamFailed
from services.executor.janitor import Janitor, Purged
from services.executor.media import MediaStore
from services.executor.media_store import MediaIndex
from services.executor.metrics import ExecutorMetrics
from services.executor.parts import RawMedia
from services.executor.purge_store import PERSONAL, PurgeStore
from services.executor.store import NewExecution, Store
from services.executor.uploads import MAX_BYTES_PER_CALLER, Uploads
from services.executor.upstream import Deadlines, Upstream
from services.runtime.bus import Bus
from services.runtime.files import Files
from tests.integration.executor_parts import BOB, EVE, bus_of
from tests.unit.test_executor_media import SECRET, WAV, png, raw

URL = "http://x402.example:8402"
NOW = timedelta(0)
DAY = timedelta(days=1)


@pytest_asyncio.fixture(scope="module")
async def executor_bus(nats_server: Nats, credentials: Credentials) -> AsyncIterator[Bus]:
    bus = bus_of("executor", nats_server, credentials)
    await bus.start()
    yield bus
    await bus.close()


@pytest_asyncio.fixture(scope="module")
async def gateway_files(nats_server: Nats, credentials: Credentials) -> AsyncIterator[Files]:
    """The store as the gateway's user."""
    bus = bus_of("gateway", nats_server, credentials)
    await bus.start()
    yield Files(bus)
    await bus.close()


@pytest_asyncio.fixture
async def files(executor_bus: Bus, superuser: asyncpg.Connection) -> Files:
    """The store as an executor's user, empty as its index is."""
    store = Files(executor_bus)
    await store.declare()
    for bucket in (MEDIA_BUCKET, INPUTS_BUCKET):
        await executor_bus.js.purge_stream(f"OBJ_{bucket}")
    await superuser.execute("TRUNCATE executor.executions, executor.x402_cached_images CASCADE")
    return store


@pytest.fixture
def index(pool: asyncpg.Pool) -> MediaIndex:
    return MediaIndex(pool)


@pytest.fixture
def metrics() -> ExecutorMetrics:
    return ExecutorMetrics(CollectorRegistry())


@pytest.fixture
def store(files: Files, index: MediaIndex, metrics: ExecutorMetrics) -> MediaStore:
    return MediaStore(files, index, metrics, f"{URL}/", SECRET)


async def made(store: MediaStore, content: bytes) -> str:
    """The name of a stored output."""
    part = await store.store(RawMedia("image", (base64.b64encode(content).decode(),), "image/jpeg"))
    assert isinstance(part, MediaPart)
    return part.url.removeprefix(f"{URL}/media/")


async def sent(gateway_files: Files, uploads: Uploads, content: bytes, caller: Caller = BOB, width: int = 3) -> str:
    """The name of an upload, as a gateway makes one."""
    claim = ClaimMedia(
        caller=caller,
        sha256=hashlib.sha256(content).hexdigest(),
        mime_type="image/png",
        bytes=len(content),
        width=width,
        height=2,
    )
    name = (await uploads.claim(claim)).name
    parts = [content[start : start + PART_BYTES] for start in range(0, len(content), PART_BYTES)]
    owner = f"{caller.kind}:{caller.id}"
    await gateway_files.put(name, StoredMedia("image/png", len(content), len(parts), owner), parts)
    return name


@pytest.fixture
def uploads(index: MediaIndex, metrics: ExecutorMetrics) -> Uploads:
    return Uploads(index, metrics, SECRET, DAY)


async def content_of(files: Files, name: str) -> bytes | None:
    media = await files.find(name)
    return None if media is None else b"".join([piece async for piece in files.read(name, 0, media.bytes - 1)])


async def past_their_time(superuser: asyncpg.Connection) -> None:
    await superuser.execute("UPDATE executor.x402_cached_images SET kept_until = now() - interval '1 second'")


async def run_with(superuser: asyncpg.Connection, name: str, status: str, expires: str | None = None) -> UUID:
    """A run that refers to a file. `expires`: when its result does, from now."""
    execution_id = new_execution_id()
    lease = "gen_random_uuid(), now()" if status == "running" else "NULL, NULL"
    ended = "NULL" if status in ("queued", "running") else "now()"
    until = "NULL" if expires is None else f"now() + interval '{expires}'"
    await superuser.execute(
        f"""INSERT INTO executor.executions (id, owner, caller_kind, caller_id, viewer, resource_version, model_id, mode,
                pricing, status, request_hash, lease_token, lease_until, finished_at, result_expires_at)
            VALUES ($1, 'ada', 'user', 'bob', 'gateway', 1, 'a/b', 'test', '{{}}', $2, 'x', {lease}, {ended}, {until})""",
        execution_id, status,
    )  # fmt: skip
    await superuser.execute("INSERT INTO executor.media_references VALUES ($1, $2)", name, execution_id)
    return execution_id


async def objects(bus: Bus) -> int:
    """Messages in both buckets: bytes and what describes them."""
    infos = [await bus.js.stream_info(f"OBJ_{bucket}") for bucket in (MEDIA_BUCKET, INPUTS_BUCKET)]
    return sum(info.state.messages for info in infos)


# Storing --------------------------------------------------------------------------------------------------------------


async def test_a_file_is_stored_in_parts_that_the_gateway_can_read(store: MediaStore, gateway_files: Files) -> None:
    content = png(1024, 768, padding=2_500_000)
    part = await store.store(raw(content))
    assert isinstance(part, MediaPart)
    assert (part.type, part.mime_type, part.bytes) == ("image", "image/png", len(content))
    assert (part.width, part.height) == (1024, 768)
    name = part.url.removeprefix(f"{URL}/media/")
    assert await gateway_files.find(name) == StoredMedia("image/png", len(content), 3)
    assert await content_of(gateway_files, name) == content
    wanted = [piece async for piece in gateway_files.read(name, PART_BYTES - 5, PART_BYTES + 4)]
    assert wanted == [content[PART_BYTES - 5 : PART_BYTES], content[PART_BYTES : PART_BYTES + 5]]


async def test_the_same_file_is_stored_and_counted_once(
    store: MediaStore, executor_bus: Bus, metrics: ExecutorMetrics
) -> None:
    content = png(7, 7, padding=10)
    first = await store.store(raw(content))
    before = await objects(executor_bus)
    assert await store.store(raw(content)) == first
    assert await objects(executor_bus) == before
    assert metrics.media_bytes._value.get() == len(content)


async def test_a_file_that_was_left_half_stored_is_stored_again(store: MediaStore, files: Files) -> None:
    content = png(5, 5, padding=PART_BYTES)
    name = await made(store, content)
    await files._delete_part(part_name(name, 0))
    assert await files.find(name) is None
    assert await made(store, content) == name
    assert await content_of(files, name) == content


async def test_the_same_file_from_ten_runs_at_once_ends_whole(store: MediaStore, files: Files) -> None:
    content = png(9, 9, padding=PART_BYTES)
    names = await asyncio.gather(*(made(store, content) for _ in range(10)))
    assert len(set(names)) == 1
    assert await content_of(files, names[0]) == content


async def test_a_picture_that_is_none_is_a_file_and_what_does_not_decode_is_an_other_part(store: MediaStore) -> None:
    words = await store.store(raw(b"This is text and no picture."))
    assert isinstance(words, MediaPart)
    assert (words.type, words.mime_type, words.url[-4:]) == ("file", "application/octet-stream", ".bin")
    broken = await store.store(RawMedia("image", ("!!!",), "image/png"))
    assert broken == OtherPart(kind="invalid_image", data={"declared_mime_type": "image/png"})
    assert (await store.store(RawMedia("audio", ("",)))).type == "other"


async def test_sound_keeps_its_transcript(store: MediaStore) -> None:
    part = await store.store(RawMedia("audio", (base64.b64encode(WAV).decode(),), None, "Hello."))
    assert isinstance(part, MediaPart)
    assert (part.type, part.mime_type, part.transcript) == ("audio", "audio/wav", "Hello.")


async def test_a_file_beyond_the_cap_is_refused(files: Files, index: MediaIndex, metrics: ExecutorMetrics) -> None:
    small = MediaStore(files, index, metrics, "http://x", SECRET, max_bytes=1000)
    with pytest.raises(UpstreamFailed):
        await small.store(raw(png(padding=2000)))


async def test_a_gateway_writes_inputs_that_executors_read(gateway_files: Files, files: Files) -> None:
    name = "in-" + "a" * 64 + ".png"
    await gateway_files.put(name, StoredMedia("image/png", 3, 1, "user:bob"), [b"abc"])
    assert await files.find(name) == StoredMedia("image/png", 3, 1, "user:bob")
    assert await content_of(files, name) == b"abc"


# Uploads and who may use them -----------------------------------------------------------------------------------------


async def test_the_same_upload_has_one_name_per_owner(files: Files, uploads: Uploads, gateway_files: Files) -> None:
    content = png()
    name = await sent(gateway_files, uploads, content)
    assert name == await sent(gateway_files, uploads, content)
    assert name != await sent(gateway_files, uploads, content, EVE)
    assert name != await sent(gateway_files, uploads, content, Caller(kind="service", id=BOB.id))


async def test_a_caller_keeps_so_much_and_no_more(
    files: Files, uploads: Uploads, gateway_files: Files, superuser: asyncpg.Connection
) -> None:
    name = await sent(gateway_files, uploads, png())
    await superuser.execute("UPDATE executor.x402_cached_images SET bytes = $1", MAX_BYTES_PER_CALLER)
    assert await sent(gateway_files, uploads, png()) == name
    with pytest.raises(ServiceError) as refused:
        await sent(gateway_files, uploads, png(4, 4), width=4)
    assert (refused.value.code, refused.value.body.scope) == (ErrorCode.RATE_LIMITED, "caller")
    assert await sent(gateway_files, uploads, png(), EVE)


PHOTO = InputField(name="photo", type="image")


async def given(attachments: Attachments, value: object, caller: Caller = BOB, **declared: object) -> Attachment | str:
    field = PHOTO.model_copy(update=declared)
    return (await attachments.of(caller, [InputField(name="text"), field], {"text": "x", "photo": value}))["photo"]  # type: ignore[dict-item]


async def test_a_run_takes_its_callers_uploads_and_anybodys_outputs(
    store: MediaStore, files: Files, index: MediaIndex, uploads: Uploads, gateway_files: Files
) -> None:
    attachments = Attachments(files, index, URL)
    upload, output = await sent(gateway_files, uploads, png()), await made(store, png(8, 8))
    for value in (media_path(upload), URL + media_path(upload), media_path(output), URL + media_path(output)):
        found = await given(attachments, value)
        assert isinstance(found, Attachment)
        assert found.mime_type == "image/png"
    assert "no such file of yours" in str(await given(attachments, media_path(upload), EVE))
    assert "no such file of yours" in str(await given(attachments, media_path("in-" + "0" * 64 + ".png")))
    for foreign in ("https://example.com/a.png", "file:///etc/passwd", "http://169.254.169.254/", "", 7, {"url": "x"}):
        assert "are not fetched" in str(await given(attachments, foreign))
    assert await attachments.of(BOB, [PHOTO], {}) == {}
    assert await attachments.of(BOB, [PHOTO], {"photo": None}) == {}


async def test_a_small_data_url_is_a_file_by_its_content(files: Files, index: MediaIndex) -> None:
    attachments = Attachments(files, index, URL)
    found = await given(attachments, "data:text/html;base64," + base64.b64encode(png()).decode())
    assert isinstance(found, Attachment)
    assert (found.mime_type, found.size) == ("image/png", len(png()))
    assert "valid base64" in str(await given(attachments, "data:image/png;base64,!"))
    assert "no type that can be sent" in str(await given(attachments, "data:image/png;base64,AAAA"))
    assert "are not fetched" in str(await given(attachments, "data:image/png,AAAA"))


async def test_a_file_is_what_its_input_declares(
    files: Files, index: MediaIndex, uploads: Uploads, gateway_files: Files
) -> None:
    attachments = Attachments(files, index, URL)
    picture = media_path(await sent(gateway_files, uploads, png()))
    assert "image/png; this input takes application/pdf" in str(await given(attachments, picture, type="file"))
    assert "this input takes image/webp" in str(await given(attachments, picture, accept=["image/webp"]))
    assert "larger than 20 bytes" in str(await given(attachments, picture, max_bytes=20))


async def test_the_files_of_a_run_have_a_limit_together(
    files: Files, index: MediaIndex, uploads: Uploads, gateway_files: Files, superuser: asyncpg.Connection
) -> None:
    name = await sent(gateway_files, uploads, png())
    await superuser.execute("UPDATE executor.x402_cached_images SET bytes = $1", MAX_ATTACHED_BYTES // 2)
    fields = [PHOTO.model_copy(update={"name": f"photo{number}"}) for number in range(3)]
    values = {field.name: media_path(name) for field in fields}
    found = await Attachments(files, index, URL).of(BOB, fields, values)
    assert [isinstance(found[field.name], Attachment) for field in fields] == [True, True, False]


async def test_a_request_is_whole_json_with_every_file_where_it_belongs(
    files: Files, index: MediaIndex, uploads: Uploads, gateway_files: Files
) -> None:
    contents = [png(3, 2, padding=padding) for padding in (0, 1, 2, PART_BYTES, 2 * PART_BYTES + 1)]
    attachments = Attachments(files, index, URL)
    found = []
    for content in contents:
        attachment = await given(attachments, media_path(await sent(gateway_files, uploads, content)))
        assert isinstance(attachment, Attachment)
        found.append(attachment)
    body = orjson.dumps({"parts": [f"data:image/png;base64,{each.marker}" for each in found], "text": "é"})
    payload = Payload(body, found)
    pieces = [piece async for piece in payload]
    assert len(payload) == sum(map(len, pieces))
    assert max(map(len, pieces)) < 300_000
    read = orjson.loads(b"".join(pieces))
    assert [base64.b64decode(part.partition(",")[2]) for part in read["parts"]] == contents
    assert b"".join([piece async for piece in payload]) == b"".join(pieces)


async def test_a_file_that_is_gone_meanwhile_fails_the_request(
    files: Files, index: MediaIndex, uploads: Uploads, gateway_files: Files
) -> None:
    name = await sent(gateway_files, uploads, png(padding=PART_BYTES))
    attachment = await given(Attachments(files, index, URL), media_path(name))
    assert isinstance(attachment, Attachment)
    await files._delete_part(part_name(name, 1))
    payload = Payload(orjson.dumps(attachment.marker), [attachment])
    with pytest.raises(ServiceError):
        assert [piece async for piece in payload]
    assert payload.failed


# The janitor ----------------------------------------------------------------------------------------------------------


async def test_files_go_once_nothing_needs_them(
    store: MediaStore, files: Files, index: MediaIndex, uploads: Uploads, gateway_files: Files, metrics: ExecutorMetrics,
    superuser: asyncpg.Connection, executor_bus: Bus,
) -> None:  # fmt: skip
    janitor = Janitor(files, index, metrics)
    output, upload = png(4, 4, padding=PART_BYTES), png(5, 5)
    names = [await made(store, output), await sent(gateway_files, uploads, upload, width=5)]
    assert await janitor.purge() == Purged()
    assert metrics.media_stored_bytes.labels("output")._value.get() == len(output)
    assert metrics.media_stored_bytes.labels("input")._value.get() == len(upload)
    await past_their_time(superuser)
    assert await janitor.purge() == Purged(2, len(output) + len(upload))
    assert [await files.find(name) for name in names] == [None, None]
    assert await superuser.fetchval("SELECT count(*) FROM executor.x402_cached_images") == 0
    assert await objects(executor_bus) == 0
    assert metrics.media_deleted_bytes._value.get() == len(output) + len(upload)
    assert metrics.media_stored_bytes.labels("output")._value.get() == 0
    assert await janitor.purge() == Purged()


@pytest.mark.parametrize(
    ("kind", "status", "expires", "stays"),
    [
        ("output", "succeeded", "1 hour", True),
        ("output", "succeeded", "-59 minutes", True),
        ("output", "succeeded", "-61 minutes", False),
        ("output", "failed", None, False),
        ("output", "queued", None, True),
        ("input", "queued", None, True),
        ("input", "running", None, True),
        ("input", "succeeded", "1 hour", False),
        ("input", "canceled", None, False),
    ],
)
async def test_a_file_stays_while_a_run_or_a_kept_result_needs_it(
    store: MediaStore, files: Files, index: MediaIndex, uploads: Uploads, gateway_files: Files, superuser: asyncpg.Connection,
    kind: str, status: str, expires: str | None, stays: bool,
) -> None:  # fmt: skip
    name = await (made(store, png()) if kind == "output" else sent(gateway_files, uploads, png()))
    await run_with(superuser, name, status, expires)
    await past_their_time(superuser)
    await Janitor(files, index).purge()
    assert (await content_of(files, name) == png()) is stays
    assert await superuser.fetchval("SELECT count(*) FROM executor.x402_cached_images") == stays


async def test_a_file_that_a_run_is_about_to_use_stays(
    files: Files, index: MediaIndex, uploads: Uploads, gateway_files: Files, superuser: asyncpg.Connection
) -> None:
    name = await sent(gateway_files, uploads, png())
    await past_their_time(superuser)
    assert isinstance(await given(Attachments(files, index, URL), media_path(name)), Attachment)
    assert await Janitor(files, index).purge() == Purged()
    assert await content_of(files, name) == png()


async def test_a_file_that_is_made_again_while_the_janitor_works_is_never_lost(
    store: MediaStore, files: Files, index: MediaIndex, superuser: asyncpg.Connection
) -> None:
    """Whoever comes first: the file is kept, or it is deleted and stored anew."""
    content = png(6, 6, padding=PART_BYTES)
    name = await made(store, content)
    went = 0
    for turn in range(20):
        await past_their_time(superuser)
        work = [Janitor(files, index).purge(), made(store, content), Janitor(files, index).purge()]
        first, _, second = await asyncio.gather(*(work if turn % 2 else [work[1], work[0], work[2]]))
        assert await content_of(files, name) == content
        assert await superuser.fetchval("SELECT count(*) FROM executor.x402_cached_images") == 1
        went += sum(done.files for done in (first, second) if isinstance(done, Purged))
    assert went > 0


async def test_two_janitors_take_each_file_once(
    store: MediaStore, files: Files, index: MediaIndex, superuser: asyncpg.Connection
) -> None:
    for side in range(1, 7):
        await made(store, png(side, side))
    await past_their_time(superuser)
    done = await asyncio.gather(*(Janitor(files, index).purge() for _ in range(3)))
    assert sum(each.files for each in done) == 6


class DyingFiles(Files):
    """Dies after so many deleted parts."""

    def __init__(self, bus: Bus, parts: int) -> None:
        super().__init__(bus)
        self._left = parts

    async def _delete_part(self, name: str) -> None:
        if not self._left:
            raise ConnectionResetError
        self._left -= 1
        await super()._delete_part(name)


@pytest.mark.parametrize("parts", [0, 1, 2])
async def test_a_janitor_that_dies_in_the_middle_leaves_a_row_for_the_next_one(
    store: MediaStore, files: Files, index: MediaIndex, superuser: asyncpg.Connection, executor_bus: Bus, parts: int
) -> None:
    content = png(2, 2, padding=2 * PART_BYTES)
    name = await made(store, content)
    await past_their_time(superuser)
    with pytest.raises((ServiceError, ConnectionResetError)):
        await Janitor(DyingFiles(executor_bus, parts), index).purge()
    assert (await files.find(name) is None) is (parts > 0)
    assert await superuser.fetchval("SELECT count(*) FROM executor.x402_cached_images") == 1
    assert await Janitor(files, index).purge() == Purged(1, len(content))
    assert await objects(executor_bus) == 0


async def test_what_was_left_behind_in_the_store_goes_after_the_grace(
    store: MediaStore, files: Files, index: MediaIndex, uploads: Uploads, gateway_files: Files, superuser: asyncpg.Connection,
    executor_bus: Bus,
) -> None:  # fmt: skip
    kept = [await made(store, png(4, 4, padding=PART_BYTES)), await sent(gateway_files, uploads, png())]
    before = await objects(executor_bus)
    # Killed between bytes and what describes them, and a file that the index does not know.
    await executor_bus.js.publish(f"$O.{MEDIA_BUCKET}.C.left", b"behind")
    await gateway_files._js.publish(f"$O.{INPUTS_BUCKET}.C.left", b"behind")
    unknown = "f" * 64 + ".png"
    await files.put(unknown, StoredMedia("image/png", PART_BYTES + 1, 2), [b"x" * PART_BYTES, b"y"])
    assert await Janitor(files, index).sweep() == 0
    assert await objects(executor_bus) == before + 2 + 4
    assert await Janitor(files, index, grace=NOW).sweep() == 3
    assert await objects(executor_bus) == before
    assert await files.find(unknown) is None
    assert [await files.find(name) is None for name in kept] == [False, False]


async def test_bytes_that_another_writer_of_the_same_file_left_are_swept(
    files: Files, index: MediaIndex, store: MediaStore, executor_bus: Bus
) -> None:
    content = png(3, 3, padding=PART_BYTES)
    name = await made(store, content)
    before = await objects(executor_bus)
    parts = [content[:PART_BYTES], content[PART_BYTES:]]
    assert len(parts) == part_count(len(content))
    await files.put(name, StoredMedia("image/png", len(content), 2), parts)
    assert await objects(executor_bus) == before + 2
    assert await Janitor(files, index, grace=NOW).sweep() == 2
    assert await objects(executor_bus) == before
    assert await content_of(files, name) == content


async def test_a_queued_run_refers_to_its_files_from_the_row_on(
    files: Files,
    index: MediaIndex,
    uploads: Uploads,
    gateway_files: Files,
    pool: asyncpg.Pool,
    superuser: asyncpg.Connection,
) -> None:
    name = await sent(gateway_files, uploads, png())
    new = NewExecution(
        new_execution_id(), "ada", "user", "bob", "gateway", None, 1, "a/b", {}, None, b"hash", media=(name,)
    )
    await Store(pool, lease_s=15).enqueue(new, mode="test", job=b"job", job_key_id="k")
    await past_their_time(superuser)
    assert await Janitor(files, index).purge() == Purged()
    await superuser.execute("UPDATE executor.executions SET status = 'canceled', finished_at = now()")
    assert (await Janitor(files, index).purge()).files == 1


async def test_what_a_person_sent_goes_when_that_person_is_purged(
    files: Files, gateway_files: Files, index: MediaIndex, uploads: Uploads, pool: asyncpg.Pool
) -> None:
    names = [
        await sent(gateway_files, uploads, png(), caller) for caller in (BOB, EVE, Caller(kind="service", id=BOB.id))
    ]
    [kind] = [kind for kind in PERSONAL if kind.what.startswith("uploads")]
    assert await PurgeStore(pool).count(kind, BOB.id) == await PurgeStore(pool).delete(kind, BOB.id) == 1
    assert (await Janitor(files, index).purge()).files == 1
    assert [await files.find(name) is None for name in names] == [True, False, False]


async def test_a_file_that_goes_while_it_is_sent_costs_nothing_and_may_be_tried_again(
    files: Files, gateway_files: Files, index: MediaIndex, uploads: Uploads
) -> None:
    name = await sent(gateway_files, uploads, png(padding=2 * PART_BYTES))
    attachment = await given(Attachments(files, index, URL), media_path(name))
    assert isinstance(attachment, Attachment)
    await files._delete_part(part_name(name, 2))
    message = {"role": "user", "content": [content_part("photo", attachment)]}
    body = {"model": "sandbox/echo", "messages": [message], "stream": True}
    async with sandbox.running(sandbox.Settings()) as url:
        upstream = Upstream("http://127.0.0.1:1/api/v1", f"{url}/api/v1")
        deadlines = Deadlines(Timeouts(), asyncio.get_running_loop().time())
        with pytest.raises(UpstreamFailed) as failed:
            async with upstream.open("test", "sk-or-test-1", body, deadlines, None, [attachment]):
                pass
        await upstream.close()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/sandbox/calls")).json()["calls"] == []
    fault = failed.value.fault
    assert (fault.code, fault.billed, fault.retry) == (ErrorCode.UNAVAILABLE, "no", True)
