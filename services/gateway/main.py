"""The gateway: HTTP in front of the bus. A translator, not a guard: what somebody may do is decided behind the bus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from pydantic import Field, SecretStr, model_validator

from services.gateway.app import create_app
from services.gateway.auth import Verifier
from services.gateway.recipients import Recipients
from services.gateway.routing import Gateway
from services.gateway.runs import Runs
from services.gateway.uploads import Uploads
from services.gateway.watch import Outages
from services.runtime.edge import Edge
from services.runtime.files import Files
from services.runtime.hardening import deny_dumps
from services.runtime.memory import give_large_blocks_back
from services.runtime.process import run
from services.runtime.service import Service
from services.runtime.settings import ServiceSettings


class Settings(ServiceSettings):
    """The environment of the gateway."""

    host: str = "127.0.0.1"
    port: int = Field(default=8402, ge=0, le=65_535)
    jwt_secret: SecretStr | None = Field(default=None, min_length=32, description="For tokens signed with HS256.")
    jwks_url: str | None = Field(
        default=None, pattern="^https?://", description="For tokens with asymmetric signatures."
    )
    jwt_issuer: str = Field(min_length=1)
    jwt_audience: str = Field(min_length=1)
    admin_role: str = Field(default="admin", min_length=1)
    public_url: str = Field(
        default="http://127.0.0.1:8402",
        description="Where clients reach this gateway.",
    )

    @model_validator(mode="after")
    def _one_family(self) -> Settings:
        if (self.jwt_secret is None) == (self.jwks_url is None):
            raise ValueError("set either JWT_SECRET or JWKS_URL")
        return self


def build(settings: Settings) -> Service:
    """The service, wired and not started."""
    registry = CollectorRegistry()
    service = Service("gateway", settings, registry)
    verifier = Verifier(
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        admin_role=settings.admin_role,
        secret=settings.jwt_secret.get_secret_value() if settings.jwt_secret is not None else None,
        jwks_url=settings.jwks_url,
    )
    outages = Outages(service.bus)
    service.on_stopping(outages.leave)
    files = Files(service.bus)
    gateway = Gateway(
        bus=service.bus,
        verifier=verifier,
        runs=Runs(service.bus, outages),
        recipients=Recipients(service.bus),
        files=files,
        uploads=Uploads(service.bus, files, settings.public_url),
        health=service.health,
    )
    service.serve_http(Edge(create_app(gateway, settings.public_url), registry), settings.host, settings.port)
    return service


def main() -> None:
    deny_dumps()
    give_large_blocks_back()
    run(lambda: build(Settings()))


if __name__ == "__main__":
    main()
