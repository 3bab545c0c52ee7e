"""How a run can end for whoever asked for it: the code, the HTTP status, the sentence, and what somebody else's caller reads
where that sentence would speak of the creator's account."""

from __future__ import annotations

from dataclasses import dataclass

_MEND = "This resource cannot run at the moment, and only its owner can put that right. Try again later, or use another one."
_PASSES = "This resource is asked for too often at the moment. Try again later."


@dataclass(frozen=True)
class Ending:
    """A way to end. `code` None: succeeded. `stranger` None: everybody reads the same; then there is no link either."""

    name: str
    code: str | None
    status: int
    sentence: str
    retryable: bool = False
    stranger: str | None = None


DONE = Ending("done", None, 200, "")

UNREACHABLE = Ending(
    "unreachable", "unavailable", 503, "OpenRouter could not be reached. Try again in a moment.", retryable=True
)
BROKEN_OFF = Ending(
    "broken off", "upstream", 502, "The connection to OpenRouter broke before the answer was complete. Try again.",
    retryable=True,
)  # fmt: skip
CUT_OFF = Ending(
    "cut off", "upstream", 502, "The model's answer ended before it was complete. Try again.", retryable=True
)
UNREADABLE = Ending(
    "unreadable", "upstream", 502, "OpenRouter sent an answer that cannot be read. Try again.", retryable=True
)
NO_COMPLETION = Ending(
    "no completion", "upstream", 502,
    "OpenRouter answered with something that is not a chat completion. Try again later.", retryable=True,
)  # fmt: skip
TOO_LARGE = Ending(
    "too large", "upstream", 502, "The model's answer is larger than can be handled. Ask for a shorter one.",
    retryable=True,
)  # fmt: skip
NOTHING = Ending("nothing", "upstream", 502, "The model answered with nothing at all. Try again.", retryable=True)
FAILED = Ending("failed", "upstream", 502, "OpenRouter or the model's provider failed. Try again.", retryable=True)
UNEXPLAINED = Ending(
    "unexplained", "upstream", 502,
    "OpenRouter refused the request and did not say why. Try again later; if it lasts, tell the owner of the resource.",
    retryable=True,
)  # fmt: skip
NOT_LET_IN = Ending(
    "not let in", "upstream", 502,
    "The model's provider does not let OpenRouter in. Try again later; if it lasts, the owner of the resource must "
    "choose another model.", retryable=True,
)  # fmt: skip
DOWN = Ending(
    "down", "unavailable", 503, "No provider of this model can answer at the moment. Try again.", retryable=True
)

NOT_BEGUN = Ending(
    "not begun", "timeout", 504,
    "The model did not begin to answer in the time that this resource allows. Try again.", retryable=True,
)  # fmt: skip
STALLED = Ending("stalled", "timeout", 504, "The model stopped in the middle of its answer. Try again.", retryable=True)
TOO_LONG = Ending(
    "too long", "timeout", 504, "The answer took longer than this resource allows. Ask for less.", retryable=True
)
PROVIDER_SLOW = Ending(
    "provider slow", "timeout", 504, "The model's provider did not answer in time. Try again.", retryable=True
)

BAD_REQUEST = Ending(
    "bad request", "invalid", 422,
    "OpenRouter refused the request as invalid. Change the input; should every input be refused, the owner of the resource "
    "must change its parameters.",
)  # fmt: skip
LONG_INPUT = Ending("long input", "invalid", 422, "The input is too long for this model. Send less, or ask for less.")
LONG_INPUT_BY = Ending(
    "long input, by how much", "invalid", 422,
    "The input is too long for this model (at most 4,096 tokens). Send less, or ask for less.",
)  # fmt: skip
LARGE_INPUT = Ending("large input", "invalid", 422, "The input is too large for OpenRouter. Send less.")
LONG_ANSWER = Ending(
    "long answer", "invalid", 422,
    "The resource asks for a longer answer than its model can give. Its owner must lower max_tokens.",
)  # fmt: skip
REASONING = Ending(
    "reasoning", "invalid", 422,
    "OpenRouter refused the reasoning settings of this resource. Its owner must change its parameters.",
)  # fmt: skip
IMAGE = Ending("image", "invalid", 422, "OpenRouter could not use an image of the request. Send another one.")
MODERATED = Ending("moderated", "moderated", 422, "A moderation refused the input. Change it and try again.")
WITHHELD = Ending("withheld", "moderated", 422, "A content filter withheld the answer. Change the input and try again.")

KEY_REJECTED = Ending(
    "key rejected", "key_rejected", 409,
    "OpenRouter does not accept your key any more. Connect a valid one, then run it again.", stranger=_MEND,
)  # fmt: skip
MANAGEMENT_KEY = Ending(
    "management key", "key_rejected", 409,
    "Your key is a management key, which cannot run models. Connect an ordinary one.",
    stranger=_MEND,
)  # fmt: skip
NO_CREDITS = Ending(
    "no credits", "credits_exhausted", 409,
    "Your OpenRouter account is out of credits. Add some at OpenRouter, then run it again.",
    stranger=_MEND,
)  # fmt: skip
FEW_CREDITS = Ending(
    "few credits", "credits_exhausted", 409,
    "Your OpenRouter account cannot cover the longest possible answer. Add credits, or lower max_tokens to 100 or less.",
    stranger=_MEND,
)  # fmt: skip
COSTLY_INPUT = Ending(
    "costly input", "credits_exhausted", 409,
    "Your OpenRouter account cannot cover a request of this size. Send a shorter input, or add credits.", stranger=_MEND,
)  # fmt: skip
CREDITS_IN_USE = Ending(
    "credits in use", "credits_exhausted", 409,
    "Too many runs are reserving credits of your OpenRouter account at once. Try again in a moment, or add credits.",
    retryable=True, stranger=_PASSES,
)  # fmt: skip
LOW_BALANCE = Ending(
    "low balance", "credits_exhausted", 409,
    "OpenRouter asks for a minimum balance before it makes images or video. Add credits, or raise the limit of your key.",
    stranger=_MEND,
)  # fmt: skip
KEY_SPENT = Ending(
    "key spent", "spend_limit", 409,
    "Your OpenRouter key has reached its own spending limit. Raise it at OpenRouter, then run it again.",
    stranger=_MEND,
)  # fmt: skip

NOT_SERVED = Ending(
    "not served", "model_unavailable", 409,
    "Nothing serves this model at present. The owner of the resource must choose another one.",
)  # fmt: skip
NOT_FOR_CHAT = Ending(
    "not for chat", "model_unavailable", 409,
    "This model cannot be used for chat. The owner of the resource must choose another one.",
)  # fmt: skip
WRONG_KIND = Ending(
    "wrong kind", "model_unavailable", 409,
    "No provider of this model takes this kind of request. Its owner must choose a model that does.",
)  # fmt: skip
WRONG_PARAMETERS = Ending(
    "wrong parameters", "model_unavailable", 409,
    "No provider of this model takes all the parameters of the resource. Its owner must change them.",
)  # fmt: skip
NOT_ALLOWED = Ending(
    "not allowed", "model_unavailable", 409,
    "No provider that may serve this resource has its model. Its owner must choose another one.",
)  # fmt: skip
REGION = Ending(
    "region", "model_unavailable", 409,
    "This model is not offered in the region that asked. The owner of the resource must choose another one.",
)  # fmt: skip
PRIVACY = Ending(
    "privacy", "model_unavailable", 409,
    "The privacy settings of your OpenRouter account rule out every provider of this model. Change them, or choose "
    "another model.",
    stranger="The model of this resource cannot be used, and only its owner can change that.",
)  # fmt: skip
FREE_ENDED = Ending(
    "free period over", "model_unavailable", 409,
    "The free period of this model is over. The owner must choose its paid version or another model.",
)  # fmt: skip

PROVIDER_BUSY = Ending(
    "provider busy", "rate_limited", 429,
    "The provider of this model takes no more requests at the moment. Try again shortly.", retryable=True,
)  # fmt: skip
KEY_BUSY = Ending(
    "key busy", "rate_limited", 429, "OpenRouter limits the requests of the key behind this resource. Try again later.",
    retryable=True,
)  # fmt: skip
FREE_LIMIT = Ending(
    "free limit", "rate_limited", 429,
    "The daily or per-minute limit of free models is reached for your OpenRouter account. Wait, or buy credits: "
    "ten dollars once lift the daily limit from 50 to 1000 requests.", retryable=True,
    stranger=_PASSES,
)  # fmt: skip
