"""POST /chat/completions: who may call, which model answers, and the playing of its script.

The handler is cancelled when the client goes away, in whatever wait it is: that is how a call becomes `cancelled` at once.
"""

import asyncio
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

import orjson
from aiohttp import web

from deploy.sandbox import errors
from deploy.sandbox.answers import FAST_CHUNKS, ordinary_answer
from deploy.sandbox.catalog import Catalog, Model, is_free, output_modalities
from deploy.sandbox.errors import Refusal
from deploy.sandbox.ledger import GENERATION_DELAY_S, Call, Ledger, hash_key, new_generation_id
from deploy.sandbox.mode_answers import fast_answer, mode_answer
from deploy.sandbox.modes import MODES
from deploy.sandbox.pricing import prices_of
from deploy.sandbox.recordings import Recording
from deploy.sandbox.requests import LIMITS, ChatRequest, limited_for, parse_request
from deploy.sandbox.scripts import HEARTBEAT_S, PLAIN, STREAM, Script, bill, paced, script_of
from deploy.sandbox.wire import PADDING, Composition, document, stream_frames

PER_MILLION = Decimal(1_000_000)
NO_ID = "gen-0000000000-00000000000000000000"
FAST_PROMPT_TOKENS = 10
CHARGED_TIMES = 2
TOLD_LATE_S = 3.0
EXPOSED = "X-Generation-Id,X-Provider-Name,cf-ray"


@dataclass(frozen=True, slots=True)
class Key:
    """What the sandbox knows of a key: its hash, and the markers in its text."""

    hash: str
    label: str
    is_management: bool
    is_out_of_credits: bool
    is_at_limit: bool
    is_free_tier: bool


class Replay(web.Response):
    """A recorded answer; `stated_type` is False where it came without a content type, which then stays absent."""

    stated_type = True


@dataclass(frozen=True, slots=True)
class _Prebuilt:
    stream: bytes
    plain: bytes
    model: str
    completion_tokens: int
    cost: Decimal


def read_key(headers: Mapping[str, str]) -> Key | Refusal:
    """The key of a request, or the 401 for it."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        return errors.NO_AUTH
    key = key.strip()
    # Between dashes alone: hexadecimal digits can spell "dead" too.
    words = key.split("-")
    if not key.startswith(("sk-or-test-", "sk-or-v1-")) or "dead" in words:
        return errors.UNKNOWN_KEY
    return Key(
        hash=hash_key(key),
        label=f"{key[:12]}...{key[-3:]}",
        is_management="mgmt" in words,
        is_out_of_credits="poor" in words,
        is_at_limit="limit" in words,
        is_free_tier="free" in words,
    )


def refusal_response(refusal: Refusal, generation_id: str | None = None) -> web.Response:
    """A refusal as a response; where a model was named it carries a generation id, as real ones do."""
    headers = {"Content-Type": PLAIN, **refusal.headers}
    if generation_id:
        headers["X-Generation-Id"] = generation_id
    return web.Response(status=refusal.status, body=refusal.body, headers=headers)


class Chat:
    """Answers chat requests. Speeds are those of ordinary models: seconds to the first token, tokens per second (0: no pace)."""

    def __init__(
        self,
        catalog: Catalog,
        recordings: dict[str, Recording],
        ledger: Ledger,
        first_token_s: float,
        tokens_per_s: float,
    ) -> None:
        self.catalog = catalog
        self.recordings = recordings
        self.ledger = ledger
        self.first_token_s = first_token_s
        self.tokens_per_s = tokens_per_s
        self._fast = {
            "sandbox/fast": self._prebuild("sandbox/fast", FAST_CHUNKS),
            "sandbox/fast-1": self._prebuild("sandbox/fast-1", 1),
        }

    def _prebuild(self, model_id: str, chunks: int) -> _Prebuilt:
        prices = prices_of(self.catalog.models[model_id], FAST_PROMPT_TOKENS)
        answer = fast_answer(chunks)
        made = Composition(answer, NO_ID, int(time.time()), model_id, model_id, FAST_PROMPT_TOKENS, prices)
        stream = b"".join(frame.data for frame in stream_frames(made))
        plain = PADDING + orjson.dumps(document(made))
        return _Prebuilt(stream, plain, model_id, made.completion_tokens, made.cost)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, from its key to the last byte."""
        key = read_key(request.headers)
        if isinstance(key, Refusal):
            return refusal_response(key)
        try:
            content = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return refusal_response(errors.TOO_LARGE)
        chat = parse_request(content)
        if isinstance(chat, Refusal):
            return refusal_response(chat)
        refusal = _key_refusal(key) or self._unknown(chat)
        *fallbacks, last = chat.models
        for model_id in fallbacks if refusal is None else ():
            outcome = await self._answer(request, chat, key, model_id)
            if not isinstance(outcome, Refusal):
                return outcome
        outcome = refusal or await self._answer(request, chat, key, last)
        if not isinstance(outcome, Refusal):
            return outcome
        self.ledger.refuse(key.hash, chat.models[0], outcome.status)
        return refusal_response(outcome, new_generation_id(time.time()))

    def _unknown(self, chat: ChatRequest) -> Refusal | None:
        self.catalog.refresh()
        missing = (model_id for model_id in chat.models if self.catalog.find(model_id) is None)
        return next((errors.unknown_model(model_id) for model_id in missing), None)

    async def _answer(
        self, request: web.Request, chat: ChatRequest, key: Key, model_id: str
    ) -> web.StreamResponse | Refusal:
        if model_id in self._fast:
            return self._send_fast(self._fast[model_id], chat, key)
        model = self.catalog.find(model_id)
        assert model is not None
        owner, _, name = model["id"].partition("/")
        if owner == "recorded" and name in self.recordings:
            return self._replay(self.recordings[name], chat, key)
        mode = name if owner == "sandbox" and name in MODES else None
        served = self.catalog.served(model)
        chat = limited_for(chat, served.get("supported_parameters", LIMITS))
        refusal = self._mode_refusal(mode, chat, key) if mode else _model_refusal(model, served, chat)
        if refusal is not None:
            return refusal
        answer = mode_answer(mode, chat) if mode else ordinary_answer(chat, served)
        now = time.time()
        made = Composition(
            answer=answer,
            generation_id=new_generation_id(now),
            created=int(now),
            requested=model_id,
            model=str(served.get("canonical_slug") or served["id"]),
            prompt_tokens=chat.prompt_tokens,
            prices=prices_of(served, chat.prompt_tokens),
            is_byok=mode == "byok",
            with_usage=mode not in ("no-usage", "late"),
        )
        script = script_of(made, mode, chat.stream)
        if mode is None:
            script = paced(script, self.first_token_s, self.tokens_per_s)
        call = Call(
            generation_id=made.generation_id,
            model=made.model,
            requested=model_id,
            key=key.hash,
            prompt=hash_key(chat.prompt),
            streamed=chat.stream,
            started_at=now,
            is_byok=made.is_byok,
            prompt_tokens=made.prompt_tokens,
            stated=not is_free(served),
            files=chat.files,
            pdf_engine=chat.pdf_engine,
            charged_times=CHARGED_TIMES if mode == "adjusted" else 1,
            told_after_s=TOLD_LATE_S if mode == "late" else GENERATION_DELAY_S,
        )
        self.ledger.begin(call)
        return await self._play(request, script, made, call)

    def _mode_refusal(self, mode: str, chat: ChatRequest, key: Key) -> Refusal | None:
        if mode.startswith("status-"):
            return errors.of_mode(mode, f"sandbox/{mode}", chat.prompt, chat.max_tokens)
        if mode == "flaky":
            prompt = hashlib.sha256(chat.prompt.encode()).hexdigest()
            return errors.FLAKY if self.ledger.first_try(f"{key.hash} {prompt}") else None
        return None

    def _send_fast(self, built: _Prebuilt, chat: ChatRequest, key: Key) -> web.Response:
        now = time.time()
        call = Call(
            generation_id=new_generation_id(now),
            model=built.model,
            requested=built.model,
            key=key.hash,
            prompt=hash_key(chat.prompt),
            streamed=chat.stream,
            started_at=now,
            prompt_tokens=FAST_PROMPT_TOKENS,
            completion_tokens=built.completion_tokens,
            upstream_cost=built.cost,
            finish_reason="stop",
            native_finish_reason="stop",
        )
        self.ledger.begin(call)
        self.ledger.end(call, "completed", built.cost)
        template = built.stream if chat.stream else built.plain
        body = template.replace(NO_ID.encode(), call.generation_id.encode())
        return web.Response(body=body, headers=_headers(call.generation_id, STREAM if chat.stream else PLAIN))

    def _replay(self, recording: Recording, chat: ChatRequest, key: Key) -> web.Response:
        requested = f"recorded/{recording.case}"
        if recording.status >= 400:
            self.ledger.refuse(key.hash, requested, recording.status)
        else:
            bill_stated = recording.bill
            call = Call(
                generation_id=next(iter(recording.generation_ids), ""),
                model=bill_stated.model if bill_stated else "",
                requested=requested,
                key=key.hash,
                prompt=hash_key(chat.prompt),
                streamed=chat.stream,
                started_at=time.time(),
                stated=False,
            )
            self.ledger.begin(call)
            self.ledger.end(call, "completed", bill_stated.cost if bill_stated else None)
        response = Replay(status=recording.status, body=recording.body)
        response.stated_type = any(name.lower() == "content-type" for name, _ in recording.headers)
        for name, value in recording.headers:
            response.headers.add(name, value)
        return response

    async def _play(self, request: web.Request, script: Script, made: Composition, call: Call) -> web.StreamResponse:
        response = web.StreamResponse(headers=_headers(made.generation_id, script.content_type))
        done = 0
        cancelled = True
        try:
            if script.ending == "mute":
                await asyncio.Event().wait()
            await response.prepare(request)
            waiting: list[bytes] = []
            for index, frame in enumerate(script.frames):
                if frame.wait_s:
                    await _write(response, waiting)
                    done = index
                    await _wait(response, frame.wait_s, script.heartbeat)
                waiting.append(frame.data)
            await _write(response, waiting)
            done = len(script.frames)
            while script.ending == "hang":
                await asyncio.sleep(HEARTBEAT_S)
                await _write(response, [script.heartbeat or b""])
            cancelled = False
        finally:
            self._settle(call, script, made, done, cancelled=cancelled)
        if script.ending == "reset" and request.transport is not None:
            request.transport.abort()
        return response

    def _settle(self, call: Call, script: Script, made: Composition, done: int, *, cancelled: bool) -> None:
        charged = bill(script, made, done, call.streamed)
        whole = charged and charged == made.inference_cost
        call.upstream_cost = charged
        call.completion_tokens = (
            made.completion_tokens if whole else sum(frame.tokens for frame in script.frames[:done])
        )
        call.reasoning_tokens = made.tokens("reasoning") if whole else 0
        call.images = sum(piece.kind == "image" for piece in made.answer.pieces)
        if not cancelled:
            call.finish_reason = made.answer.finish if script.billed else "error"
            call.native_finish_reason = made.answer.native_finish if script.billed else None
        cost = Decimal(0) if made.is_byok else made.cost if whole else charged
        self.ledger.end(call, "cancelled" if cancelled else "completed", cost * call.charged_times)


def _headers(generation_id: str, content_type: str) -> dict[str, str]:
    headers = {
        "Content-Type": content_type,
        "X-Generation-Id": generation_id,
        "Access-Control-Expose-Headers": EXPOSED,
    }
    if content_type == STREAM:
        headers["Cache-Control"] = "no-cache"
    return headers


async def _write(response: web.StreamResponse, waiting: list[bytes]) -> None:
    data = b"".join(waiting)
    waiting.clear()
    if data:
        await response.write(data)


async def _wait(response: web.StreamResponse, seconds: float, heartbeat: bytes | None) -> None:
    while heartbeat and seconds > HEARTBEAT_S:
        await asyncio.sleep(HEARTBEAT_S)
        await response.write(heartbeat)
        seconds -= HEARTBEAT_S
    await asyncio.sleep(seconds)


def _key_refusal(key: Key) -> Refusal | None:
    if key.is_management:
        return errors.MANAGEMENT_KEY
    if key.is_out_of_credits:
        return errors.OUT_OF_CREDITS
    return errors.KEY_LIMIT if key.is_at_limit else None


def _model_refusal(model: Model, served: Model, chat: ChatRequest) -> Refusal | None:
    if model["id"].endswith(":batch"):
        return errors.BATCH_ONLY
    if "text" not in output_modalities(model):
        return errors.no_endpoints(f"for {model['id']}")
    accepted = (model.get("architecture") or {}).get("input_modalities") or ["text"]
    for kind in sorted(chat.input_kinds - {"file"} - set(accepted)):
        return errors.no_endpoints(f"that support {kind} input")
    if chat.reasoning.get("effort") == "none" and (served.get("reasoning") or {}).get("mandatory"):
        return errors.refuse(400, "Reasoning is mandatory for this endpoint and cannot be disabled.")
    if is_free(model) and chat.provider.get("data_collection") == "deny":
        return errors.no_endpoints("matching your data policy (Free model training)")
    return _price_refusal(served, chat)


def _price_refusal(served: Model, chat: ChatRequest) -> Refusal | None:
    limits = chat.provider.get("max_price")
    if not isinstance(limits, dict):
        return None
    prices = prices_of(served, chat.prompt_tokens)
    for kind, price in (("prompt", prices.prompt), ("completion", prices.text)):
        limit = limits.get(kind)
        if limit is not None and price * PER_MILLION > Decimal(str(limit)):
            return errors.no_endpoints(f"within your maximum {kind} price")
    return None
