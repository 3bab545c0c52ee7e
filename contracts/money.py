"""Money: `Decimal` in code, a string on the wire, never a float. An amount that is not known is `None`, never zero.

A JSON number with a fraction is refused on purpose: it has been through a float by the time anybody could look at it.
A whole number is exact, and taken.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

MICRO_USD = Decimal("0.000001")
_LARGEST_USD = Decimal(1_000_000_000)


def plain(amount: Decimal) -> str:
    """The amount without an exponent and without trailing zeros: `0.0000258`, `12`, `0`."""
    text = format(amount, "f")
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


def round_price(amount: Decimal) -> Decimal:
    """Half-up to a millionth of a dollar: the rounding of every price that is computed rather than typed."""
    return amount.quantize(MICRO_USD, rounding=ROUND_HALF_UP)


def exact_decimal(value: Any) -> Decimal:
    """A finite Decimal out of a string, an int or a Decimal. Raises ValueError with a sentence for the user."""
    if isinstance(value, float | bool) or not isinstance(value, str | int | Decimal):
        raise ValueError('send the amount as a string, for example "0.01"')
    if isinstance(value, str) and len(value) > 60:
        raise ValueError("the amount has too many characters")
    try:
        amount = Decimal(value)
    except InvalidOperation:
        raise ValueError('the amount is not a number; send for example "0.01"') from None
    if not amount.is_finite() or abs(amount) >= _LARGEST_USD:
        raise ValueError("the amount is not a finite number of a sensible size")
    return amount


_as_text = PlainSerializer(plain, return_type=str, when_used="json")

Usd = Annotated[
    Decimal,
    BeforeValidator(exact_decimal),
    _as_text,
    WithJsonSchema({"type": "string", "pattern": r"^-?\d+(\.\d+)?$", "examples": ["0.01"]}),
]
"""An exact amount of US dollars; may be negative (a markup can be)."""

Price = Annotated[Usd, Field(ge=0, description="USD, zero or more, as a string.")]
Percent = Annotated[Usd, Field(ge=0, le=100_000, description="Percent, zero or more, as a string.")]
