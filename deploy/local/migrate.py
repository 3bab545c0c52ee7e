"""Brings a database to the schema of the services: dbmate over every `services/*/migrations`, each recorded in the
schema of its service. Runs as the superuser; the roles that the migrations make get their passwords here, since SQL
files hold none."""

import asyncio
import subprocess
from pathlib import Path

import asyncpg

from deploy.local.nats import wheel_binary
from deploy.local.process import inherited_environment

SERVICES = Path(__file__).resolve().parents[2] / "services"


def services_with_migrations() -> list[str]:
    """Names of the services that keep data, which are also the names of their schemas."""
    return sorted({path.parent.parent.name for path in SERVICES.glob("*/migrations/*.sql")})


async def migrate(superuser_dsn: str) -> None:
    """Applies what is missing, service by service; harmless when nothing is.

    Raises `RuntimeError` with what dbmate said.
    """
    for service in services_with_migrations():
        await asyncio.to_thread(_run_dbmate, service, superuser_dsn)


async def set_passwords(superuser_dsn: str, passwords: dict[str, str]) -> None:
    """Gives each role its password. Raises `RuntimeError` for a role that no migration has made."""
    connection = await asyncpg.connect(superuser_dsn)
    try:
        for role, password in passwords.items():
            if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
                raise RuntimeError(f"no migration creates the role {role}")
            statement = await connection.fetchval(
                "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)", role, password
            )
            await connection.execute(statement)
    finally:
        await connection.close()


def _run_dbmate(service: str, superuser_dsn: str) -> None:
    command = [
        *(wheel_binary("dbmate"), "--env-file", "/dev/null", "--no-dump-schema"),
        *("--migrations-dir", str(SERVICES / service / "migrations")),
        *("--migrations-table", f"{service}.schema_migrations", "migrate"),
    ]
    # The address goes through the environment: a command line is readable by every user of the machine.
    env = {**inherited_environment(), "DATABASE_URL": f"{superuser_dsn}?sslmode=disable"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"migration of {service} failed:\n{run.stdout}{run.stderr}")
