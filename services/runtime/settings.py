"""What every service is told by its environment. A service's own settings subclass this in its `main.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ProcessSettings(BaseSettings):
    """Read from plain environment variables (`METRICS_PORT`, …); there is no configuration file and no prefix."""

    model_config = SettingsConfigDict(env_file=None, extra="ignore", hide_input_in_errors=True)

    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=0, ge=0, le=65_535, description="0 takes a free port and logs it.")
    log_format: Literal["console", "json"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    instance: str | None = Field(
        default=None, description="Name of this replica in logs and leases; made up unless given."
    )


class ServiceSettings(ProcessSettings):
    """Of a process that is on the bus."""

    nats_url: str = "nats://127.0.0.1:4222"
    nats_user: str | None = Field(default=None, description="The service's own name unless given.")
    nats_password: SecretStr
