"""The console: pages for creators and buyers in front of the HTTP interface, of which it is a client like any other."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from pydantic import Field, SecretStr, model_validator

from services.console.api import Gateway
from services.console.app import create_app
from services.console.oidc import CALLBACK_PATH, Provider
from services.runtime.edge import Edge
from services.runtime.process import Process, run
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
    oidc_issuer: str | None = Field(
        default=None, pattern="^https?://", description="The identity provider that people sign in with."
    )
    oidc_client_id: str | None = Field(default=None, min_length=1, description="What the console is called there.")
    oidc_client_secret: SecretStr | None = Field(default=None, min_length=1)
    oidc_scopes: str = Field(default="openid email", pattern=r"(^|\s)openid(\s|$)")
    oidc_audience: str | None = Field(
        default=None,
        min_length=1,
        description="With it the access token for this audience goes to the gateway, without it the ID token.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        if (self.oidc_issuer is None) != (self.oidc_client_id is None):
            raise ValueError("set OIDC_ISSUER and OIDC_CLIENT_ID together")
        return self


def build(settings: Settings) -> Process:
    """The console, wired and not started."""
    registry = CollectorRegistry()
    process = Process("console", settings, registry, drain_timeout_s=5)
    gateway = Gateway(settings.gateway_url)
    process.health.add("gateway", gateway.ping)
    process.on_stop(gateway.close)
    provider = _provider(settings)
    if provider is not None:
        process.on_stop(provider.close)
    app = create_app(
        gateway,
        provider=provider,
        health=process.health,
        public_url=settings.public_url,
        gateway_public_url=settings.gateway_public_url,
    )
    process.serve_http(Edge(app, registry), settings.host, settings.port)
    return process


def _provider(settings: Settings) -> Provider | None:
    if settings.oidc_issuer is None or settings.oidc_client_id is None:
        return None
    secret = settings.oidc_client_secret
    return Provider(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        client_secret=secret.get_secret_value() if secret is not None else None,
        scopes=settings.oidc_scopes,
        audience=settings.oidc_audience,
        callback=settings.public_url.rstrip("/") + CALLBACK_PATH,
    )


def main() -> None:
    run(lambda: build(Settings()))


if __name__ == "__main__":
    main()
