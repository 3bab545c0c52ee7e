"""Reading what a form sent. Forms are url-encoded: files go by themselves, see `Api.upload`."""

from __future__ import annotations

from decimal import Decimal
from urllib.parse import parse_qsl

from starlette.requests import Request

from contracts.errors import ErrorCode, FieldProblem
from contracts.money import exact_decimal
from services.console.api import ApiError, Problem

_MAX_BYTES = 2 * 1024 * 1024


class Form(dict[str, str]):
    """The fields of a form by name, without the space around them; a field that is missing is empty."""

    def __missing__(self, name: str) -> str:
        return ""

    def amount(self, name: str) -> Decimal | None:
        """An amount of US dollars that somebody typed; None when left empty. Raises `ApiError` where it is none."""
        text = self[name].removeprefix("$").replace(",", "")
        if not text:
            return None
        try:
            amount = exact_decimal(text)
        except ValueError:
            raise refused(name, "Write an amount of US dollars, such as 0.01.") from None
        if amount < 0:
            raise refused(name, "Write an amount of zero or more.")
        return amount


def refused(name: str, sentence: str) -> ApiError:
    """What the page says when a field cannot be sent on as it is."""
    problem = Problem(
        title="Something is missing or cannot be read",
        detail=sentence,
        code=ErrorCode.INVALID,
        status=422,
        errors=[FieldProblem(path=name, message=sentence)],
    )
    return ApiError(problem)


async def form_of(request: Request) -> Form:
    """The fields of the form that was sent. Raises `ApiError` for one that is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BYTES:
            raise refused("", "This is too much for one form; send at most 2 MiB.")
    fields = parse_qsl(body.decode(errors="replace"), keep_blank_values=True)
    return Form((name, value.strip()) for name, value in fields)
