"""What the `sandbox/<mode>` models do: one sentence each, which is also the description in the served catalog.

A mode changes the answer, the way it travels, or refuses. Modes answer at once unless their sentence says otherwise; only
ordinary models are paced. Where a fault is about SSE, a request without `stream` gets the nearest plain form of it.
"""

ANSWERS = {
    "echo": "Answers with the last user message, verbatim.",
    "fast": "Answers 20 chunks in one write, prebuilt: for benchmarks.",
    "fast-1": "Answers one chunk in one write, prebuilt: for benchmarks.",
    "long": "Streams 200 chunks, one every 20 ms.",
    "slow": "Sends only keep-alives for 3 s, then answers.",
    "drip": "Sends one chunk every 2 s.",
    "empty": "Finishes with `stop` and no content; bills nothing.",
    "length": "Stops at the token limit in the middle of a sentence, with finish reason `length`.",
    "content-filter": "Stops in the middle, with finish reason `content_filter`.",
    "refusal": "Has null content and a `refusal` sentence.",
    "thinking-only": "Spends all its tokens on reasoning: empty content, finish reason `length`, billed.",
    "reasoning": "Reasons first, then answers.",
    "content-list": "Sends content as a list of parts with a thinking part, as Mistral models do.",
    "citations": "Cites two pages in annotations and bills a web search.",
    "tools": "Calls the first offered tool, or `get_weather` when none is offered.",
    "tools-no-args": "Calls a tool without any `arguments` key.",
    "image": "Answers one PNG and no text.",
    "image-two": "Answers two different PNGs and a sentence.",
    "image-bad": "Answers a data URL that says PNG and holds text.",
    "svg-image": "Answers an SVG picture with a script in it.",
    "audio": "Answers a WAV with a transcript, in several pieces.",
    "byok": "Bills through the account's own provider key: cost 0, real upstream cost, `is_byok` true.",
    "adjusted": "Charges the account twice what the answer says; /generation knows.",
    "late": "As no-usage, and /generation does not know before 3 s have passed.",
    "no-usage": "Leaves the usage out; the cost is known to /generation alone.",
}

FAULTS = {
    "split-utf8": "Cuts multi-byte characters in half between TCP writes.",
    "oversize": "Sends 6 MB of text in one frame.",
    "plain": "Answers a streamed request with a plain JSON document.",
    "error-in-200": "Answers 200 with a body that is only an error.",
    "choices-null": "Answers 200 with `choices: null` and no error.",
    "error-first": "Opens the stream with 200 and sends an error as its only event.",
    "mid-stream-error": "Sends some text, then an error with finish reason `error`.",
    "cut": "Sends some text, then resets the TCP connection.",
    "cut-plain-end": "Sends some text, then ends the body cleanly: no finish, no usage, no `[DONE]`.",
    "no-done": "Sends finish and usage, and ends without `[DONE]`.",
    "silence": "Sends headers, then keep-alives for ever.",
    "silence-no-headers": "Never answers anything.",
    "stall": "Sends some text, then nothing more, for ever.",
    "garbage": "Answers bytes that are neither JSON nor UTF-8.",
    "garbage-frame": "Has one broken frame in the middle of a good stream; plain, a character too many.",
    "half-json": "Ends in the middle of a JSON document.",
    "flaky": "Refuses the first call with a given prompt with 503, then answers.",
}

STATUSES = {
    "status-400": "Refuses with 400: the prompt is longer than the context.",
    "status-401": "Refuses with 401, as for a revoked key.",
    "status-402": "Refuses with 402: the account is out of credits.",
    "status-402-max-tokens": "Refuses with 402 unless max_tokens is 100 or less; then answers.",
    "status-402-in-flight": "Refuses with 402 because of concurrent reservations; retryable, with Retry-After.",
    "status-403": "Refuses with 403: the provider is not allowed.",
    "status-403-limit": "Refuses with 403: the key's own spending limit is reached.",
    "status-403-moderation": "Refuses with 403: moderation flagged the input, which is quoted back.",
    "status-404": "Refuses with 404: no endpoints.",
    "status-408": "Refuses with 408: the request timed out.",
    "status-413": "Refuses with 413: the body is too large.",
    "status-429": "Refuses with 429 of a provider, without any hint when to retry.",
    "status-429-platform": "Refuses with 429 of the platform, with X-RateLimit headers that lift after 3 s.",
    "status-429-upstream": "Refuses with 429 of a provider, with Retry-After 1.",
    "status-500": "Refuses with a masked 500.",
    "status-502": "Refuses with 502: the provider answered nonsense.",
    "status-503": "Refuses with 503: nobody meets the routing requirements.",
    "status-504": "Refuses with 504: the provider timed out.",
    "status-524": "Refuses with 524: the edge timed out.",
    "status-529": "Refuses with 529: the provider is overloaded.",
}

MODES = ANSWERS | FAULTS | STATUSES
