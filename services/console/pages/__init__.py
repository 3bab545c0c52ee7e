"""The pages, one module per matter, each with a `router`. A new one joins `PAGES` and touches nothing else."""

from services.console.pages import (
    executions,
    listings,
    models,
    openrouter,
    resource,
    resources,
    sign_in,
    streams,
    trying,
    uploads,
    workflows,
)

PAGES = (
    sign_in,
    models,
    resources,
    openrouter,
    listings,
    resource,
    executions,
    workflows,
    trying,
    uploads,
    streams,
)
