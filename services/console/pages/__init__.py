"""The pages, one module per matter, each with a `router`. A new one joins `PAGES` and touches nothing else."""

from services.console.pages import listings, models, openrouter, resource, resources, sign_in, streams, trying, uploads

PAGES = (
    sign_in,
    models,
    resources,
    openrouter,
    listings,
    resource,
    trying,
    uploads,
    streams,
)
