"""What stands in the menu. A page module that belongs there says so with an `ENTRY` of its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One entry of the menu: `place` orders them, `icon` is a name of `icons.html`.

    It is marked on every page whose address begins with `under`, or with its own path where that is not given.
    """

    name: str
    path: str
    icon: str
    place: int
    under: str | None = None

    def marks(self, path: str) -> bool:
        """Whether the page at `path` belongs to it."""
        under = self.under or self.path
        return path == under or path.startswith(f"{under}/")
