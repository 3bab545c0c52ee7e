"""Files that callers send: uploaded or in the request, theirs alone, and at the model byte for byte."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import httpx
import pytest

from contracts.attachments import MAX_ATTACHMENT_BYTES
from deploy.local.stack import Stack
from deploy.sandbox.media import png, wav
from tests.e2e.client import Person, connected, problem, signed_in

PHOTO = [{"name": "photo", "type": "image"}]
PDF = (
    b"%PDF-1.4\n1 0 obj\n<</Type/Catalog/Pages 2 0 R>>\nendobj\n2 0 obj\n<</Type/Pages/Kids[3 0 R 4 0 R]/Count 2>>\nendobj\n"
    b"3 0 obj\n<</Type/Page/Parent 2 0 R>>\nendobj\n4 0 obj\n<</Type/Page/Parent 2 0 R>>\nendobj\ntrailer<</Root 1 0 R>>\n%%EOF"
)


def data_url(mime_type: str, content: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def padded(content: bytes, size: int) -> bytes:
    """The picture with bytes behind its end, which readers of pictures skip."""
    return content + b"\0" * (size - len(content))


async def upload(person: Person, content: bytes, **headers: str) -> dict[str, Any]:
    answer = await person.http.post("/media", content=content, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == answer.json()["url"]
    kept: dict[str, Any] = answer.json()
    return kept


async def viewer(person: Person, inputs: list[dict[str, Any]] | None = None, **changes: Any) -> str:
    """A resource that is given files, on a model that takes pictures."""
    config = {"prompt_template": "What is this?", "max_tokens": 100, **changes.pop("config", {})}
    resource = await person.publish(
        model=changes.pop("model", "openai/gpt-4o-mini"), config=config, inputs=inputs or PHOTO, **changes
    )
    reference: str = resource["id"]
    return reference


async def sent_files(person: Person) -> list[dict[str, Any]]:
    """The files of this person's calls, as the sandbox saw them."""
    return [file for call in await person.upstream_calls() for file in call["files"]]


async def test_picture_reaches_the_model_byte_for_byte_when_uploaded_or_sent_as_data_url(stack: Stack) -> None:
    content = padded(png("a photo"), 3_000_001)
    async with connected(stack, "alice") as alice:
        resource = await viewer(alice)
        kept = await upload(alice, content, **{"Content-Type": "text/plain"})
        assert (kept["mime_type"], kept["bytes"], kept["width"], kept["height"]) == (
            "image/png",
            len(content),
            256,
            256,
        )
        for value in (kept["url"], "/media/" + kept["url"].rpartition("/")[2], data_url("image/jpeg", content)):
            await alice.result(resource, input={"photo": value})
        stream = await alice.stream(resource, input={"photo": kept["url"]})
        assert stream[-1].kind == "completed"
        queued = await alice.enqueue(resource, input={"photo": kept["url"]})
        assert (await alice.ended(queued))["status"] == "succeeded"
        expected = hash_of(data_url("image/png", content))
        assert [(file["kind"], file["sha256"]) for file in await sent_files(alice)] == [("image", expected)] * 5


async def test_slashes_may_be_escaped_and_the_same_data_url_is_the_same_request(stack: Stack) -> None:
    content = padded(png("another"), 2_500_000)
    body: dict[str, Any] = {"input": {"photo": data_url("image/png", content)}}
    async with connected(stack, "alice") as alice:
        body["resource"] = await viewer(alice)
        text = json.dumps(body)
        ids = []
        for sent in (text, text.replace("/", "\\/")):
            answer = await alice.http.post("/api/execute", content=sent, headers={"Idempotency-Key": "once"})
            assert answer.status_code == 200, answer.text
            ids.append(answer.json()["execution_id"])
        assert len(set(ids)) == 1
        [file] = await sent_files(alice)
        assert file["sha256"] == hash_of(body["input"]["photo"])


async def test_pdf_and_sound_are_sent_in_their_own_forms_when_declared(stack: Stack) -> None:
    inputs: list[dict[str, Any]] = [
        {"name": "paper", "type": "file"},
        {"name": "song", "type": "audio", "required": False},
    ]
    async with connected(stack, "alice") as alice:
        models = (await alice.get("/api/models", input_modality="audio", limit=1))["items"]
        resource = await viewer(alice, inputs, model=models[0]["id"])
        kept = await upload(alice, PDF)
        assert (kept["mime_type"], kept["pages"], kept["width"]) == ("application/pdf", 2, None)
        await alice.result(resource, input={"paper": kept["url"], "song": data_url("audio/mpeg", wav("a song"))})
        paper, song = await sent_files(alice)
        assert (paper["filename"], paper["sha256"]) == ("paper.pdf", hash_of(data_url("application/pdf", PDF)))
        assert (song["format"], song["sha256"]) == ("wav", hash_of(base64.b64encode(wav("a song")).decode()))
        [call] = await alice.upstream_calls()
        assert call["pdf_engine"] in {"native", "cloudflare-ai"}


async def test_upload_is_its_owners_alone(stack: Stack) -> None:
    async with connected(stack, "alice") as alice, signed_in(stack, "eve") as eve, httpx.AsyncClient() as anybody:
        resource = await viewer(alice)
        kept = await upload(alice, png("secret"))
        mine = await alice.http.get(kept["url"])
        assert (mine.status_code, mine.content) == (200, png("secret"))
        assert mine.headers["cache-control"] == "private, no-cache"
        assert mine.headers["x-content-type-options"] == "nosniff"
        etag = {"If-None-Match": mine.headers["etag"]}
        assert (await alice.http.get(kept["url"], headers=etag)).status_code == 304
        part = await alice.http.get(kept["url"], headers={"Range": "bytes=1-3"})
        assert (part.status_code, part.content) == (206, b"PNG")
        head = await alice.http.head(kept["url"])
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(kept["bytes"]))
        problem(await anybody.get(kept["url"]), 401, "unauthenticated")
        problem(await eve.http.get(kept["url"]), 404, "not_found")
        problem(await eve.http.get(kept["url"], headers=etag), 404, "not_found")
        assert (await eve.http.head(kept["url"])).status_code == 404
        refused = problem(await eve.execute(resource, input={"photo": kept["url"]}), 422, "invalid")
        assert [error["path"] for error in refused["errors"]] == ["input.photo"]
        assert (await upload(eve, png("secret")))["url"] != kept["url"]
        assert not await sent_files(alice)


async def test_generated_picture_goes_into_the_next_run_when_named_by_its_address(stack: Stack) -> None:
    async with connected(stack, "alice") as alice:
        made = (await alice.result((await alice.create(model="sandbox/image"))["id"]))["outputs"][0]
        await alice.result(await viewer(alice), input={"photo": made["url"]})
        picture = (await alice.http.get(made["url"])).content
        assert [file["sha256"] for file in await sent_files(alice)] == [hash_of(data_url("image/png", picture))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"MZ\x90\x00 a program", "no type that can be sent"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no type that can be sent"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "cannot be read"),
        (png("x")[:16] + b"\x00\x00\xff\xff\x00\x00\xff\xff" + png("x")[24:], "million pixels"),
        (PDF.replace(b"<</Root", b"<</Encrypt 9 0 R/Root"), "encrypted or damaged"),
        (PDF.replace(b"3 0 R 4 0 R", b"3 0 R " * 201), "more than 200 pages"),
        (b"%PDF-1.4\n", "cannot be counted"),
        (b"", "no body"),
    ],
)
async def test_file_that_cannot_be_sent_is_refused_when_uploaded(stack: Stack, content: bytes, message: str) -> None:
    async with signed_in(stack, "bob") as bob:
        refused = problem(await bob.http.post("/media", content=content), 422, "invalid")
        assert message in refused["detail"]


async def test_upload_is_refused_without_a_token_beyond_its_limit_and_as_a_form(stack: Stack) -> None:
    async with signed_in(stack, "bob") as bob:
        problem(await bob.http.post("/media", content=png("x"), headers={"Authorization": ""}), 401, "unauthenticated")
        large = padded(png("x"), MAX_ATTACHMENT_BYTES)
        assert (await upload(bob, large))["bytes"] == MAX_ATTACHMENT_BYTES
        problem(await bob.http.post("/media", content=large + b"\0"), 413, "invalid")

        async def endless() -> Any:
            for _ in range(22):
                yield b"\0" * 1024 * 1024

        problem(await bob.http.post("/media", content=endless()), 413, "invalid")
        form = await bob.http.post("/media", files={"file": ("x.png", png("x"))})
        assert "--data-binary" in problem(form, 422, "invalid")["detail"]


async def test_input_is_refused_when_it_is_not_what_the_resource_declares(stack: Stack) -> None:
    inputs = [{"name": "photo", "type": "image", "accept": ["image/webp"]}]
    async with connected(stack, "alice") as alice:
        resource = await viewer(alice, inputs)
        kept = await upload(alice, png("x"))
        for value, message in (
            (kept["url"], "this input takes image/webp"),
            (data_url("image/webp", png("x")), "this input takes image/webp"),
            ("https://example.com/cat.webp", "are not fetched"),
            ("data:image/webp;base64,!!", "not valid base64"),
            (data_url("image/webp", b"words"), "no type that can be sent"),
            (data_url("image/webp", b"words" * 600_000), "no type that can be sent"),
            (7, "are not fetched"),
        ):
            refused = problem(await alice.execute(resource, input={"photo": value}), 422, "invalid")
            [error] = refused["errors"]
            assert error["path"] == "input.photo"
            assert message in error["message"]
        assert not await alice.upstream_calls()


async def test_large_body_is_refused_when_it_is_not_a_file_that_is_large(stack: Stack) -> None:
    text = "x" * 3_000_000
    async with connected(stack, "alice") as alice:
        resource = await viewer(alice)
        problem(await alice.execute(resource, input={"photo": text}), 413, "invalid")
        url = data_url("image/png", padded(png("x"), 2_500_000))
        problem(await alice.execute(resource, input={"photo": {"deep": url}}), 422, "invalid")
        problem(await alice.execute(resource, input={"photo": url}, max_price_usd=url), 422, "invalid")
        problem(await alice.execute(resource, input={"photo": url, "more": text}), 413, "invalid")
        too_long = data_url("image/png", padded(png("x"), MAX_ATTACHMENT_BYTES + 1))
        assert (
            "larger than" in problem(await alice.execute(resource, input={"photo": too_long}), 422, "invalid")["detail"]
        )
        problem(await alice.execute(resource, input={"photo": too_long + too_long[:4_000_000]}), 413, "invalid")
        assert not await alice.upstream_calls()
