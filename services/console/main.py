"""The console: pages for creators and buyers in front of the HTTP interface, of which it is a client like any other."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from pydantic import Field

from services.console.api import Gateway
from services.console.app import create_app
from services.runtime.edge import Edge
from services.runtime.service import Process, run
from services.runtime.settings import ProcessSettings


class Settings(ProcessSettings):
    """The environment of the console."""

    host: str = "127.0.0.1"
    port: int = Field(default=8403, ge=0, le=65_535)
    gateway_url: str = Field(
        default="http://127.0.0.1:8402", pattern="^https?://", description="Where the console reaches a gateway."
    )
    gateway_public_url: str = Field(
        default="http://127.0.0.1:8402",
        pattern="^https?://",
        description="Where browsers and callers reach it: media, and the commands that people copy.",
    )
    public_url: str = Field(
        default="http://localhost:8403", pattern="^https?://", description="Where browsers reach the console."
    )


def build(settings: Settings) -> Process:
    """The console, wired and not started."""
    registry = CollectorRegistry()
    process = Process("console", settings, registry, drain_timeout_s=5)
    gateway = Gateway(settings.gateway_url)
    process.health.add("gateway", gateway.ping)
    process.on_stop(gateway.close)
    app = create_app(
        gateway,
        health=process.health,
        public_url=settings.public_url,
        gateway_public_url=settings.gateway_public_url,
    )
    process.serve_http(Edge(app, registry), settings.host, settings.port)
    return process


def main() -> None:
    run(lambda: build(Settings()))


if __name__ == "__main__":
    main()
