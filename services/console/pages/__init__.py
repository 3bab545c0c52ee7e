"""The pages, one module per matter, each with a `router`. A new one joins `PAGES` and touches nothing else."""

from services.console.pages import listings, models, openrouter, sign_in, streams, trying, uploads

PAGES = (
    sign_in,
    models,
    openrouter,
    listings,
    trying,
    uploads,
    streams,
)
