"""Bodies as they stand in the documentation. A test checks every one of them against its contract."""

from __future__ import annotations

from typing import Any

from contracts.errors import ErrorCode

EXECUTION_ID = "019c2f6e-7a10-7c41-9d3e-5b1f0a6c2d88"
RESOURCE_ID = "4f8a2b6e-3c1d-4e5f-8a9b-0c1d2e3f4a5b"

KEY_STATUS: dict[str, Any] = {
    "connected": True,
    "mode": "test",
    "hint": "sk-or-test-…a1b2",
    "health": "ok",
    "version": 1,
    "connected_at": "2026-11-23T09:30:00Z",
    "verified_at": "2026-11-23T09:30:00Z",
    "limit_usd": "25",
    "limit_remaining_usd": "24.5",
    "limit_reset": "monthly",
    "usage_usd": "0.5",
    "credits_remaining_usd": "12.75",
    "is_free_tier": False,
    "expires_at": None,
}

UPLOAD: dict[str, Any] = {
    "url": "http://127.0.0.1:8402/media/in-7c1f0d6e2b9a4853c6e1f7a20d94b85e3f6c07a1d2b48e95a3c6f10b7d28e4f9.png",
    "mime_type": "image/png",
    "bytes": 48213,
    "width": 1024,
    "height": 768,
    "pages": None,
    "expires_at": "2026-11-24T09:30:00Z",
}

DISCONNECTED: dict[str, Any] = {"connected": False}

CONNECT: dict[str, Any] = {"api_key": "sk-or-test-demo"}

OAUTH_BEGIN: dict[str, Any] = {"callback_url": "http://localhost:8403/openrouter/callback"}

OAUTH_BEGUN: dict[str, Any] = {
    "authorize_url": "https://openrouter.ai/auth?callback_url=http%3A%2F%2Flocalhost%3A8403%2Fopenrouter%2Fcallback"
    "%3Fstate%3Dsample-state-sample-state-sample-state-12345"
    "&code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&code_challenge_method=S256",
    "state": "sample-state-sample-state-sample-state-12345",
    "expires_at": "2026-11-23T09:40:00Z",
}

OAUTH_COMPLETE: dict[str, Any] = {"code": "auth_code_sample", "state": OAUTH_BEGUN["state"]}

ACCESS_PAGE: dict[str, Any] = {
    "items": [
        {
            "seq": 2,
            "at": "2026-11-23T09:31:10Z",
            "action": "lease",
            "result": "granted",
            "instance": "executor-1",
            "version": 1,
            "hash": "9f2c7a1e4b8d6035c1f7e2a9b4d80617e3c5a29f18b7d4063ea1c95f7b2d8e04",
        },
        {
            "seq": 1,
            "at": "2026-11-23T09:30:00Z",
            "action": "connect",
            "result": "done",
            "instance": "keys-1",
            "version": 1,
            "hash": "41d0b7e95c2a8f36e1b49d70a5c8f2137be6940d5a1c3f78e20b96d4c7a5f183",
        },
    ],
    "total": 2,
    "next_cursor": None,
}

PRICING: dict[str, Any] = {"prompt": "0.00000015", "completion": "0.0000006", "price_kind": "fixed"}

MODEL: dict[str, Any] = {
    "id": "openai/gpt-4o-mini",
    "name": "OpenAI: GPT-4o-mini",
    "provider": "openai",
    "description": "A small and fast model.",
    "context_length": 128000,
    "max_completion_tokens": 16384,
    "input_modalities": ["text", "image", "file"],
    "output_modalities": ["text"],
    "pricing": PRICING,
    "price_kind": "fixed",
    "supported_parameters": ["max_tokens", "temperature", "tools"],
    "badges": ["vision", "files", "tools"],
    "curated": True,
    "curated_reason": "Cheap, fast and good enough for most prompts.",
    "popularity_rank": 12,
    "status": "available",
    "retires_on": None,
    "executable": True,
    "not_executable_reason": None,
    "created_at": "2024-07-18T00:00:00Z",
    "typical_call_usd": "0.00045",
}

MODEL_DETAIL: dict[str, Any] = {
    **MODEL,
    "alias_target": None,
    "replacement": None,
    "price_history": [{"since": "2024-07-18T00:00:00Z", "pricing": PRICING}],
}

_PROVIDER: dict[str, Any] = {
    "name": "Azure",
    "tag": "azure",
    "healthy": True,
    "context_length": 128000,
    "supported_parameters": ["max_tokens", "tools"],
    "pricing": PRICING,
    "typical_call_usd": "0.00045",
    "uptime_1d_percent": 99.91,
    "first_token_ms": {"p50": 410.0, "p75": 520.0, "p90": 760.0, "p99": 2100.0},
    "tokens_per_s": {"p50": 88.0, "p75": 71.0, "p90": 54.0, "p99": 20.0},
}
MODEL_PROVIDERS = {"model_id": "openai/gpt-4o-mini", "items": [_PROVIDER], "read_at": "2026-11-23T09:30:00Z"}

MODEL_PAGE: dict[str, Any] = {"items": [MODEL], "total": 1, "next_cursor": None, "facets": None}

ESTIMATE_REQUEST: dict[str, Any] = {
    "model_id": "openai/gpt-4o-mini",
    "prompt": "A haiku about rain",
    "max_tokens": 200,
    "price": "0.01",
}

ESTIMATE: dict[str, Any] = {
    "model_id": "openai/gpt-4o-mini",
    "price_kind": "fixed",
    "prompt_tokens": 6,
    "expected_completion_tokens": 100,
    "max_completion_tokens": 200,
    "low_usd": "0.0000009",
    "expected_usd": "0.0000609",
    "ceiling_usd": "0.0001209",
    "assumptions": ["Half of max_tokens is what such a run usually writes."],
    "price_usd": "0.01",
    "margin": {"low_usd": "0.0098791", "expected_usd": "0.0099391", "ceiling_usd": "0.0099991"},
}

SYNC_REPORT: dict[str, Any] = {
    "id": 7,
    "outcome": "applied",
    "started_at": "2026-11-23T03:00:00Z",
    "finished_at": "2026-11-23T03:00:02Z",
    "requested_by": "schedule",
    "models": 400,
    "added": ["openai/gpt-4o-mini"],
    "retired": [],
    "returned": [],
    "repriced": [],
    "skipped": 0,
    "forced": False,
    "changes": [{"model_id": "openai/gpt-4o-mini", "name": "OpenAI: GPT-4o-mini", "change": "added", "fields": []}],
    "changes_total": 1,
    "curated_missing": [],
    "reason": None,
}

SYNC_LIST: dict[str, Any] = {"items": [SYNC_REPORT]}

DRAFT: dict[str, Any] = {
    "resource_type": "openrouter_instant",
    "name": "Haiku maker",
    "slug": "haiku-maker",
    "description": "Writes a haiku about anything.",
    "openrouter_config": {
        "model_id": "openai/gpt-4o-mini",
        "fallback_models": [],
        "system_prompt": None,
        "prompt_template": "A haiku about {{topic}}",
        "temperature": 0.7,
        "max_tokens": 200,
        "modalities": ["text"],
        "parameters": {},
    },
    "inputs": [{"name": "topic", "type": "text", "required": True, "default": None, "max_length": 200}],
    "pricing": {"mode": "fixed", "price_usd": "0.01"},
    "example_output": "Rain on the tin roof\nthe cat counts every droplet\nand loses the count",
    "margin_rule": "warn",
}

COST_PLUS_DRAFT: dict[str, Any] = {
    **DRAFT,
    "pricing": {"mode": "cost_plus", "markup_percent": "40", "min_usd": "0.002", "max_usd": "0.10"},
}

PATCH: dict[str, Any] = {"pricing": {"mode": "fixed", "price_usd": "0.02"}, "expected_version": 1}

PREVIEW: dict[str, Any] = {**DRAFT, "input": {"topic": "rain"}, "stream": False}

INPUT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"topic": {"type": "string", "maxLength": 200}},
    "required": ["topic"],
    "additionalProperties": False,
}

BREAKDOWN: dict[str, Any] = {
    "low": {"model_usd": "0.0000009", "markup_usd": "0.0099991", "price_usd": "0.01"},
    "expected": {"model_usd": "0.0000609", "markup_usd": "0.0099391", "price_usd": "0.01"},
    "ceiling": {"model_usd": "0.0002409", "markup_usd": "0.0097591", "price_usd": "0.01"},
    "measured_runs": 0,
}

RESOURCE: dict[str, Any] = {
    **DRAFT,
    "timeouts": {"first_token_s": 60, "idle_s": 30, "total_s": 300},
    "id": RESOURCE_ID,
    "owner": "alice",
    "version": 1,
    "status": "draft",
    "model": MODEL,
    "badges": ["tools"],
    "availability": {
        "available": True,
        "reason": None,
        "code": None,
        "replacement": None,
        "proposal": None,
        "ends_on": None,
    },
    "warnings": [],
    "input_schema": INPUT_SCHEMA,
    "breakdown": BREAKDOWN,
    "notices": [],
    "created_at": "2026-11-23T09:31:00Z",
    "updated_at": "2026-11-23T09:31:00Z",
}

DRAFT_REVIEW: dict[str, Any] = {
    "breakdown": BREAKDOWN,
    "assumptions": ["The expected answer has 150 tokens, the longest 200; thinking counts as answer."],
    "warnings": [],
    "input_schema": INPUT_SCHEMA,
}

RESOURCE_PAGE: dict[str, Any] = {"items": [RESOURCE], "total": 1, "next_cursor": None}

LISTING: dict[str, Any] = {
    "id": RESOURCE_ID,
    "owner": "alice",
    "slug": "haiku-maker",
    "name": "Haiku maker",
    "description": "Writes a haiku about anything.",
    "inputs": DRAFT["inputs"],
    "input_schema": INPUT_SCHEMA,
    "output_modalities": ["text"],
    "example_output": DRAFT["example_output"],
    "pricing_mode": "fixed",
    "price_usd": "0.01",
    "min_price_usd": "0.01",
    "max_price_usd": "0.01",
    "badges": ["tools"],
    "available": True,
    "unavailable_reason": None,
    "available_until": None,
    "measured": {"runs": 184, "success_rate": 0.9837, "median_ms": 910, "p95_ms": 2140, "mode": "live"},
    "version": 1,
    "updated_at": "2026-11-23T09:31:00Z",
}

LISTING_PAGE: dict[str, Any] = {"items": [LISTING], "total": 1, "next_cursor": None}

VERSION_PAGE: dict[str, Any] = {
    "items": [
        {
            "version": 2,
            "created_at": "2026-11-23T09:40:00Z",
            "changes": [{"path": "pricing.price_usd", "before": "0.01", "after": "0.02"}],
        },
        {"version": 1, "created_at": "2026-11-23T09:31:00Z", "changes": []},
    ],
    "total": 2,
    "next_cursor": None,
}

FIGURES: dict[str, Any] = {
    "runs": 12,
    "own_runs": 2,
    "test_runs": 0,
    "succeeded": 10,
    "failed": 1,
    "canceled": 1,
    "interrupted": 0,
    "failures": {"timeout": 1},
    "model_usd": "0.0003096",
    "price_usd": "0.11",
    "margin_usd": "0.1096904",
    "test_model_usd": "0",
    "test_price_usd": "0",
    "test_margin_usd": "0",
    "cost_unknown_runs": 1,
    "median_ms": 910,
    "p95_ms": 2140,
    "prompt_tokens": 144,
    "completion_tokens": 480,
}

STATS: dict[str, Any] = {
    "resource_id": RESOURCE_ID,
    "since": "2026-10-25",
    "until": "2026-11-23",
    "total": FIGURES,
    "days": [{**FIGURES, "day": "2026-11-23"}],
}

BUDGET_LIMITS: dict[str, Any] = {
    "key_daily_usd": "5",
    "caller_daily_usd": "0.5",
    "resources": [{"resource_id": RESOURCE_ID, "daily_usd": "2"}],
    "callers": [{"caller_kind": "service", "caller_id": "shop", "daily_usd": "3"}],
}

BUDGETS: dict[str, Any] = {
    **BUDGET_LIMITS,
    "day": "2026-11-23",
    "today": [
        {
            "scope": "key",
            "mode": "live",
            "resource_id": None,
            "caller_kind": None,
            "caller_id": None,
            "daily_usd": "5",
            "spent_usd": "4.2",
            "cost_unknown_runs": 0,
            "reached_percent": 80,
        }
    ],
    "today_in_test": [],
}

EXECUTE: dict[str, Any] = {"resource": "alice/haiku-maker", "input": {"topic": "rain"}, "max_price_usd": "0.01"}

EXECUTE_STREAMED: dict[str, Any] = {**EXECUTE, "stream": True}

RESULT: dict[str, Any] = {
    "execution_id": EXECUTION_ID,
    "status": "succeeded",
    "mode": "test",
    "resource_id": RESOURCE_ID,
    "resource_version": 1,
    "text": "Rain on the tin roof",
    "outputs": [{"type": "text", "text": "Rain on the tin roof"}],
    "reasoning": None,
    "finish_reason": "stop",
    "truncated": False,
    "model": {"requested": "openai/gpt-4o-mini", "served": "openai/gpt-4o-mini-2024-07-18", "provider": "OpenAI"},
    "usage": {"prompt_tokens": 12, "completion_tokens": 40, "reasoning_tokens": 0, "cached_tokens": 0},
    "cost": {"model_usd": "0.0000258", "markup_usd": "0.0099742", "price_usd": "0.01", "status": "final"},
    "timing": {"queued_ms": 1, "first_token_ms": 310, "total_ms": 900},
    "attempts": 1,
}

ACCEPTED: dict[str, Any] = {"execution_id": EXECUTION_ID, "status": "queued"}

EXECUTION: dict[str, Any] = {
    "execution_id": EXECUTION_ID,
    "status": "succeeded",
    "mode": "test",
    "owner": "alice",
    "caller": {"kind": "user", "id": "bob"},
    "resource_id": RESOURCE_ID,
    "resource_version": 1,
    "model": "openai/gpt-4o-mini",
    "created_at": "2026-11-23T09:32:00Z",
    "started_at": "2026-11-23T09:32:00Z",
    "finished_at": "2026-11-23T09:32:01Z",
    "last_seq": 5,
    "result": {**RESULT, "cost": {"price_usd": "0.01"}},
    "error": None,
    "output_expired": False,
    "cost": {"price_usd": "0.01"},
    "receipt": None,
    "revisions": [],
}

EXECUTION_PAGE: dict[str, Any] = {"items": [EXECUTION], "next_cursor": None}

DEAD_LETTER: dict[str, Any] = {
    "id": EXECUTION_ID,
    "kind": "job",
    "status": "waiting",
    "execution_id": EXECUTION_ID,
    "caller": {"kind": "user", "id": "bob"},
    "owner": "alice",
    "resource_id": EXECUTION["resource_id"],
    "code": ErrorCode.UNAVAILABLE.value,
    "reason": "A part of the service is starting or down; try again shortly.",
    "tries": 20,
    "accepted_at": "2026-05-01T12:00:00Z",
    "died_at": "2026-05-01T13:04:00Z",
    "requeued_at": None,
    "requeued_by": None,
}
DEAD_LETTER_PAGE: dict[str, Any] = {"items": [DEAD_LETTER], "next_cursor": None}

EVENTS = (
    'id: 1\nevent: started\ndata: {"execution_id":"' + EXECUTION_ID + '","model":"openai/gpt-4o-mini"}\n\n'
    'id: 2\nevent: text\ndata: {"text":"Rain on the "}\n\n'
    'id: 3\nevent: text\ndata: {"text":"tin roof"}\n\n'
    'id: 4\nevent: completed\ndata: {"execution_id":"' + EXECUTION_ID + '","status":"succeeded", …}\n\n'
)

WORKFLOW_ID = "01995b41-77aa-7c10-9e21-3f0d6b8c5a02"

WORKFLOW_REQUEST: dict[str, Any] = {
    "input": {"topic": "rain"},
    "max_price_usd": "0.05",
    "steps": [
        {"name": "draft", "resource": "alice/haiku-maker", "input": {"topic": "{{input.topic}}"}},
        {
            "name": "answer",
            "resource": "alice/haiku-maker",
            "input": {"topic": "an answer to this: {{steps.draft.text}}"},
        },
    ],
}

_STEP_PRICE: dict[str, Any] = {"price_usd": "0.01"}

WORKFLOW: dict[str, Any] = {
    "workflow_id": WORKFLOW_ID,
    "status": "running",
    "created_at": "2026-11-23T09:40:00Z",
    "finished_at": None,
    "last_seq": 3,
    "begun_seq": 0,
    "max_price_usd": "0.05",
    "cost": _STEP_PRICE,
    "steps": [
        {
            "name": "draft",
            "resource": "alice/haiku-maker",
            "depends_on": [],
            "status": "succeeded",
            "execution_id": EXECUTION_ID,
            "attempts": [
                {
                    "number": 1,
                    "execution_id": EXECUTION_ID,
                    "status": "succeeded",
                    "cost": _STEP_PRICE,
                    "error": None,
                }
            ],
            "error": None,
            "result": None,
        },
        {
            "name": "answer",
            "resource": "alice/haiku-maker",
            "depends_on": ["draft"],
            "status": "running",
            "execution_id": "01995b41-79c2-7d3e-8b14-0a9f5c6d7e31",
            "attempts": [
                {
                    "number": 1,
                    "execution_id": "01995b41-79c2-7d3e-8b14-0a9f5c6d7e31",
                    "status": "running",
                    "cost": None,
                    "error": None,
                }
            ],
            "error": None,
            "result": None,
        },
    ],
    "error": None,
}

WORKFLOW_PAGE: dict[str, Any] = {
    "items": [
        {
            "workflow_id": WORKFLOW_ID,
            "status": "running",
            "created_at": "2026-11-23T09:40:00Z",
            "finished_at": None,
            "steps": {"draft": "succeeded", "answer": "running"},
        }
    ],
    "next_cursor": None,
}

WORKFLOW_EVENTS = (
    'id: 1\nevent: step\ndata: {"workflow_id":"' + WORKFLOW_ID + '","step":"draft","status":"running",'
    '"execution_id":"' + EXECUTION_ID + '","error":null}\n\n'
    'id: 2\nevent: step\ndata: {"workflow_id":"' + WORKFLOW_ID + '","step":"draft","status":"succeeded", …}\n\n'
    'id: 3\nevent: completed\ndata: {"workflow_id":"' + WORKFLOW_ID + '","status":"succeeded","steps":[…], …}\n\n'
)
