"""Which variables of the caller's environment reach which process of `make run`. A list and not the whole environment, so that
only `keys` ever sees a master key, and a variable left over in somebody's shell changes nothing."""

from collections.abc import Mapping
from pathlib import Path

COMMON = ("LOG_LEVEL", "LOG_FORMAT")
OWN = {
    "sandbox": (),
    "keys": ("OPENROUTER_URL", "OPENROUTER_AUTH_URL", "OAUTH_CALLBACK_ORIGINS"),
    "catalog": (),
    "executor": (
        "OPENROUTER_URL",
        "RUNNING_PER_KEY",
        "REQUESTS_PER_MINUTE_PER_CALLER",
        "REQUESTS_PER_MINUTE_PER_KEY",
        "SLOT_WAIT_S",
        "MAX_RUNNING",
        "KEEP_RESULTS_HOURS",
        "KEEP_INPUTS_HOURS",
        "POSTGRES_POOL",
    ),
    "gateway": (),
    "console": (),
}
SANDBOX_PREFIX = "SANDBOX_"
SANDBOX_PATHS = ("SANDBOX_CATALOG", "SANDBOX_RECORDINGS")
LIVE_CATALOG_URL = "https://openrouter.ai/api/v1"


def settings_from(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The settings per process that a caller's environment asks for.

    Everything that begins with `SANDBOX_` goes to the sandbox, with paths made absolute; `CATALOG=live` makes the catalog sync
    from OpenRouter itself. Raises `ValueError` for another value of `CATALOG`.
    """
    settings = {name: _pick(environment, (*COMMON, *own)) for name, own in OWN.items()}
    settings["sandbox"] |= {name: value for name, value in environment.items() if name.startswith(SANDBOX_PREFIX)}
    for name in SANDBOX_PATHS:
        if path := settings["sandbox"].get(name):
            settings["sandbox"][name] = str(Path(path).expanduser().resolve())
    match environment.get("CATALOG", "sandbox"):
        case "live":
            settings["catalog"]["CATALOG_UPSTREAM_URL"] = LIVE_CATALOG_URL
            settings["catalog"]["CATALOG_UPSTREAM_KEY"] = environment.get("CATALOG_UPSTREAM_KEY", "")
        case "sandbox" | "":
            pass
        case other:
            raise ValueError(f"CATALOG is {other!r}: use `live` or leave it out")
    return settings


def _pick(environment: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: environment[name] for name in names if environment.get(name)}
