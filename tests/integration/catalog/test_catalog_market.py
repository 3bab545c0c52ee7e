"""Resources on the market: what happens to them, what they earn, and what creator and buyer see of it, on real parts."""

import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from math import ceil
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from contracts.catalog import Resource
from contracts.errors import ErrorCode, ServiceError
from contracts.execution import Receipt
from contracts.market import Figures
from contracts.subjects import EXECUTION_FINISHED, NOTICES_STREAM, RECEIPTS_STREAM
from deploy.local.credentials import Credentials
from deploy.local.nats import Nats
from services.catalog import main as catalog_main
from services.catalog.reviews import Finding
from services.runtime.bus import encode
from tests.integration.catalog_parts import Upstream, catalog_running, catalog_settings, draft, entry
from tests.integration.market_parts import Market, market_around, receipt
from tests.stack import Database
from tests.waiting import until


@pytest_asyncio.fixture
async def market(
    database: Database, own_nats: Nats, credentials: Credentials, upstream: Upstream
) -> AsyncIterator[Market]:
    async with market_around(database, own_nats, credentials, upstream) as around:
        yield around


def priced(model_id: str, prompt: str, completion: str, **changes: Any) -> dict[str, Any]:
    return entry(model_id, pricing={"prompt": prompt, "completion": completion}, **changes)


OTHERS = (entry("m/b"), entry("m/c"))


async def published(market: Market, **changes: Any) -> Resource:
    return await market.parties.publish(await market.parties.create(**changes))


async def refused(attempt: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await attempt
    return caught.value


# The life of a model under a resource ---------------------------------------------------------------------------------


async def test_a_model_is_announced_to_end_retires_comes_back_and_is_repriced(market: Market) -> None:
    """Walked through with what is told, and what the creator and a buyer see, at each step."""
    created = await published(market, margin_rule="pause")
    assert created.breakdown is not None
    assert (created.notices, created.warnings) == ([], [])
    assert created.breakdown.expected.price_usd == Decimal("0.01")
    seen = await market.as_buyer(created)
    assert (seen.available, seen.unavailable_reason, seen.available_until) == (True, None, None)

    # Its end is announced.
    await market.sync(entry("m/a", expiration_date="2027-01-31"), *OTHERS)
    assert market.kinds() == ["model_retiring"]
    assert ("haiku-maker", "availability") in await market.parties.heard()
    mine = await market.parties.get(created)
    assert (mine.status, mine.availability.available) == ("published", True)
    assert mine.availability.ends_on == date(2027, 1, 31)
    assert mine.availability.proposal is not None
    assert mine.availability.proposal.model_id in {"m/b", "m/c"}
    assert mine.availability.proposal.difference.prompt_after_usd == Decimal("0.000001")
    seen = await market.listing()
    assert (seen.available, seen.available_until) == (True, date(2027, 1, 31))

    # It is gone. What could take over costs twice as much.
    await market.sync(priced("m/b", "0.000002", "0.000004"), priced("m/c", "0.000003", "0.000006"))
    assert market.kinds()[1:] == ["model_retired"]
    mine = await market.parties.get(created)
    assert (mine.status, mine.availability.available) == ("unavailable", False)
    told = mine.notices[0]
    assert (told.kind, told.version, told.model_id) == ("model_retired", 1, "m/a")
    assert told.replacement is not None
    assert told.replacement.model_id == "m/b"
    prices = told.replacement.difference
    assert (prices.prompt_before_usd, prices.prompt_after_usd) == (Decimal("0.000001"), Decimal("0.000002"))
    assert prices.run_before_usd is not None
    assert prices.run_after_usd == 2 * prices.run_before_usd
    seen = await market.as_buyer(created)
    assert (seen.available, seen.available_until) == (False, None)
    assert seen.unavailable_reason is not None
    assert "m/" not in seen.unavailable_reason
    assert not (await market.parties.resolve(str(created.id))).availability.available

    # It comes back at the old price.
    await market.sync(entry("m/a"), *OTHERS)
    assert market.kinds()[2:] == ["model_returned"]
    mine = await market.parties.get(created)
    assert (mine.status, mine.availability.available) == ("published", True)
    assert (await market.listing()).available

    # It is repriced far above what the resource brings: paused, as its creator asked.
    await market.sync(priced("m/a", "0.001", "0.01"), *OTHERS)
    assert market.kinds()[3:] == ["model_repriced", "paused_below_cost"]
    mine = await market.parties.get(created)
    assert mine.status == "paused"
    assert mine.breakdown is not None
    assert mine.breakdown.expected.markup_usd is not None
    assert mine.breakdown.expected.markup_usd < 0
    assert any("costs more" in warning for warning in mine.warnings)
    loss, repriced = mine.notices[0], mine.notices[1]
    assert loss.cost == mine.breakdown.expected
    assert repriced.difference is not None
    assert repriced.difference.completion_after_usd == Decimal("0.01")
    assert (await refused(market.listing())).code is ErrorCode.NOT_FOUND
    assert (await refused(market.as_buyer(created))).code is ErrorCode.NOT_FOUND
    assert ("haiku-maker", "paused") in await market.parties.heard()

    # The creator publishes all the same, and that stands: this change was acted upon.
    await market.parties.publish(created)
    await market.feed(receipt(created, cost_usd="0.5") for _ in range(5))
    assert len(market.kinds()) == 5
    assert (await market.parties.get(created)).status == "published"

    # Cheaper again: told, and nothing to guard against.
    await market.sync(entry("m/a"), *OTHERS)
    assert market.kinds()[5:] == ["model_repriced"]
    assert (await market.parties.get(created)).status == "published"

    # Each was told by the stream once, to whoever tells creators.
    kept = await market.parties.gateway.js.stream_info(NOTICES_STREAM.name)
    assert kept.state.messages == 6
    assert {notice.resource_id for notice in market.notices} == {created.id}


async def test_only_resources_on_the_model_are_told_and_drafts_are_not_paused(market: Market) -> None:
    other = await published(market, slug="other", openrouter_config=draft("m/b")["openrouter_config"])
    waiting = await market.parties.create(margin_rule="pause")
    await market.sync(priced("m/a", "0.001", "0.01"), *OTHERS)
    assert market.kinds() == ["model_repriced", "below_cost"]
    assert {notice.resource_id for notice in market.notices} == {waiting.id}
    assert (await market.parties.get(waiting)).status == "draft"
    assert (await market.parties.get(other)).notices == []


async def test_a_withdrawn_end_and_a_lost_fallback_are_told(market: Market) -> None:
    config = {**draft()["openrouter_config"], "fallback_models": ["m/b"]}
    created = await published(market, openrouter_config=config)
    await market.sync(entry("m/a", expiration_date="2027-01-31"), *OTHERS)
    await market.sync(entry("m/a"), *OTHERS)
    await market.sync(entry("m/a"), entry("m/c"))
    assert market.kinds() == ["model_retiring", "model_stays", "fallback_retired"]
    mine = await market.parties.get(created)
    assert mine.availability.available, "its main model is there"
    assert any("m/b" in warning for warning in mine.warnings)


async def test_a_fallback_is_repriced_announced_to_end_retires_and_comes_back(market: Market) -> None:
    """What happens to a fallback is told, and it is guarded against like what happens to the main model."""
    config = {**draft()["openrouter_config"], "fallback_models": ["m/b"]}
    created = await published(market, openrouter_config=config, margin_rule="pause")

    await market.sync(entry("m/a"), priced("m/b", "0.000002", "0.000004"), entry("m/c"))
    assert market.kinds() == ["fallback_repriced"]
    (told,) = (await market.parties.get(created)).notices
    assert (told.model_id, told.kind) == ("m/b", "fallback_repriced")
    assert told.difference is not None
    assert told.difference.run_before_usd is not None
    assert told.difference.run_after_usd == 2 * told.difference.run_before_usd

    # It costs more than callers pay: paused, as its creator asked, and once.
    await market.sync(entry("m/a"), priced("m/b", "0.001", "0.01"), entry("m/c"))
    assert market.kinds()[1:] == ["fallback_repriced", "paused_below_cost"]
    mine = await market.parties.get(created)
    assert (mine.status, mine.notices[0].model_id) == ("paused", "m/b")
    assert any("m/b, a fallback, answers costs more" in warning for warning in mine.warnings)
    await market.parties.publish(created)
    await market.feed(receipt(created, cost_usd="0.5") for _ in range(5))
    assert len(market.kinds()) == 3, "the receipts show the loss of a change that was acted upon"
    assert (await market.parties.get(created)).status == "published"

    await market.sync(entry("m/a"), entry("m/b", expiration_date="2027-01-31"), entry("m/c"))
    assert market.kinds()[3:] == ["fallback_retiring", "fallback_repriced"]
    proposed = (await market.parties.get(created)).notices[1].replacement
    assert proposed is not None
    assert proposed.model_id == "m/c", "not the model that is named already"
    await market.sync(entry("m/a"), entry("m/c"))
    await market.sync(entry("m/a"), *OTHERS)
    assert market.kinds()[5:] == ["fallback_retired", "fallback_returned"]
    mine = await market.parties.get(created)
    assert (mine.status, mine.warnings) == ("published", [])
    assert market.kinds().count("paused_below_cost") == 1

    # A new price of the fallback is a new change, also for what the receipts show.
    await market.sync(entry("m/a"), priced("m/b", "0.000002", "0.000004"), entry("m/c"))
    await market.feed(receipt(created, cost_usd="0.5") for _ in range(3))
    assert market.kinds()[7:] == ["fallback_repriced", "paused_below_cost"]


async def test_one_sync_that_makes_both_models_dear_is_acted_upon_once(market: Market) -> None:
    config = {**draft()["openrouter_config"], "fallback_models": ["m/b"]}
    created = await published(market, openrouter_config=config)
    await market.sync(priced("m/a", "0.001", "0.01"), priced("m/b", "0.002", "0.02"), entry("m/c"))
    await market.feed(receipt(created, cost_usd="0.5") for _ in range(3))
    assert market.kinds() == ["model_repriced", "fallback_repriced", "below_cost"]
    mine = await market.parties.get(created)
    assert mine.notices[0].model_id == "m/a"
    assert sum("costs more than callers pay" in warning for warning in mine.warnings) == 2


async def test_executors_are_given_the_fallback_models_and_which_of_them_are_gone(market: Market) -> None:
    config = {**draft()["openrouter_config"], "fallback_models": ["m/c", "m/b"]}
    created = await published(market, openrouter_config=config)
    market.upstream.entries = [entry("m/a"), entry("m/b", supported_parameters=["max_completion_tokens"])]
    await market.parties.sync()
    resolved = await market.parties.resolve(str(created.id))
    assert [(model.id, model.status) for model in resolved.fallbacks] == [("m/c", "retired"), ("m/b", "available")]
    assert resolved.fallbacks[1].supported_parameters == ["max_completion_tokens"]
    checked = await market.parties.check(openrouter_config={**config, "fallback_models": ["m/b"]})
    assert [model.id for model in checked.fallbacks] == ["m/b"]
    assert (await market.parties.check()).fallbacks == []


async def test_an_edit_between_a_sync_and_the_look_hides_nothing(market: Market) -> None:
    created = await published(market)
    market.upstream.entries = [priced("m/a", "0.001", "0.01"), *OTHERS]
    await market.parties.sync()
    await market.parties.update(created, description="At the same moment.")
    await market.settled()
    assert market.kinds() == ["model_repriced", "below_cost"]


async def test_what_a_catalog_that_died_left_untold_is_told_at_the_next_start(
    database: Database, own_nats: Nats, credentials: Credentials, upstream: Upstream
) -> None:
    finding = Finding("model_retired", "m/a", "Written, and then the power went.", cause="once")
    async with market_around(database, own_nats, credentials, upstream, replicas=0) as market:
        async with catalog_running(catalog_settings(database, own_nats, credentials, upstream)):
            created = await published(market)
        async with market.pool.acquire() as connection:
            new = [
                await market.store.add_notice(
                    connection, owner="ann", resource_id=created.id, slug="haiku-maker", version=1, finding=finding
                )
                for _ in range(2)
            ]
        assert new == [True, False]
        assert market.kinds() == []
        async with catalog_running(catalog_settings(database, own_nats, credentials, upstream)):
            await market.settled()
            assert market.kinds() == ["model_retired"]


async def test_a_resource_that_cannot_be_judged_keeps_no_other_from_it(market: Market) -> None:
    broken, sound = await published(market, slug="broken"), await published(market)
    await market.pool.execute("UPDATE catalog.x402_resources SET inputs = '[]' WHERE id = $1", broken.id)
    market.upstream.entries = [priced("m/a", "0.001", "0.01"), *OTHERS]
    await market.parties.sync()

    async def told() -> bool:
        return market.kinds() == ["model_repriced", "below_cost"]

    await until(told)
    assert {notice.resource_id for notice in market.notices} == {sound.id}


async def test_a_newly_chosen_model_has_not_changed(market: Market) -> None:
    created = await published(market)
    await market.parties.update(created, openrouter_config=draft("m/b")["openrouter_config"])
    await market.sync(*OTHERS)
    await market.settled()
    assert market.kinds() == []


# The margin guard -----------------------------------------------------------------------------------------------------


async def test_receipts_that_show_a_loss_pause_once_per_change(market: Market) -> None:
    created = await published(market, margin_rule="pause")
    await market.feed([receipt(created, cost_usd="0.02"), receipt(created, cost_usd="0.02")])
    assert market.kinds() == [], "two runs are no trend"
    await market.feed([receipt(created, cost_usd="0.02")])
    assert market.kinds() == ["paused_below_cost"]
    told = (await market.parties.get(created)).notices[0]
    assert told.cost is not None
    assert (told.cost.model_usd, told.cost.price_usd) == (Decimal("0.02"), Decimal("0.01"))
    assert (await market.parties.get(created)).status == "paused"

    await market.parties.publish(created)
    await market.feed(receipt(created, cost_usd="0.02") for _ in range(10))
    assert market.kinds() == ["paused_below_cost"], "nothing has changed since"
    assert (await market.parties.get(created)).status == "published"

    # An edit is a change: the guard looks at the new version's runs, and at them alone.
    await market.parties.update(created, pricing={"mode": "fixed", "price_usd": "0.015"})
    await market.feed([receipt(created, cost_usd="0.02")])
    await market.feed(receipt(created, cost_usd="0.02", price_usd="0.015", resource_version=2) for _ in range(3))
    assert market.kinds() == ["paused_below_cost"] * 2
    assert (await market.parties.get(created)).notices[0].version == 2

    # Another price upstream is one as well.
    await market.parties.publish(created)
    await market.sync(priced("m/a", "0.0000011", "0.0000022"), *OTHERS)
    assert market.kinds()[2:] == ["model_repriced"]
    await market.feed(receipt(created, cost_usd="0.02", price_usd="0.015", resource_version=2) for _ in range(3))
    assert market.kinds()[3:] == ["paused_below_cost"]


async def test_who_only_wants_to_be_warned_is_only_warned(market: Market) -> None:
    created = await published(market)
    await market.feed(receipt(created, cost_usd="0.02") for _ in range(4))
    assert market.kinds() == ["below_cost"]
    assert (await market.parties.get(created)).status == "published"


async def test_a_warning_to_a_draft_leaves_the_pause_for_when_it_is_published(market: Market) -> None:
    created = await market.parties.create(margin_rule="pause")
    await market.feed(receipt(created, cost_usd="0.02") for _ in range(4))
    assert market.kinds() == ["below_cost"]
    await market.parties.publish(created)
    await market.feed([receipt(created, cost_usd="0.02")])
    assert market.kinds() == ["below_cost", "paused_below_cost"]
    assert (await market.parties.get(created)).status == "paused"
    # What was still running when it was paused is no news, and publishing again stands.
    await market.feed([receipt(created, cost_usd="0.02")])
    await market.parties.publish(created)
    await market.feed([receipt(created, cost_usd="0.02")])
    assert market.kinds() == ["below_cost", "paused_below_cost"]
    assert (await market.parties.get(created)).status == "published"


async def test_test_runs_neither_pause_a_live_resource_nor_say_what_it_takes(market: Market) -> None:
    created = await published(market, margin_rule="pause")
    in_test: dict[str, Any] = {"mode": "test", "usage": {"prompt_tokens": 9, "completion_tokens": 9}}
    await market.feed([receipt(created, **in_test)])
    trial = (await market.parties.get(created)).breakdown
    assert trial is not None
    assert trial.measured_runs == 1, "better than a guess"
    await market.feed([receipt(created), receipt(created)])
    await market.feed(receipt(created, cost_usd="0.5", **in_test) for _ in range(6))
    assert market.kinds() == []
    mine = await market.parties.get(created)
    assert mine.status == "published"
    assert mine.breakdown is not None
    assert mine.breakdown.measured_runs == 2
    assert mine.breakdown.expected.model_usd == 10 * Decimal("0.000001") + 40 * Decimal("0.000002")
    # One that has only been tried out is judged by its trials.
    tried = await published(market, slug="tried", margin_rule="pause")
    await market.feed(receipt(tried, mode="test", cost_usd="0.02") for _ in range(3))
    assert market.kinds() == ["paused_below_cost"]


async def test_the_sums_of_tokens_are_told_apart_when_they_were_of_both_modes(market: Market) -> None:
    created = await published(market)
    await market.feed([receipt(created), receipt(created), receipt(created, mode="test")])
    kept = "SELECT mode, runs, prompt_tokens, completion_tokens FROM catalog.resource_token_stats ORDER BY mode"
    before = await market.pool.fetch(kept)
    migrations = Path(catalog_main.__file__).parent / "migrations"
    up, down = (migrations / "20261123000032_pre_token_stats_by_mode.sql").read_text().split("-- migrate:down")
    await market.pool.execute(down)
    assert await market.pool.fetchval("SELECT runs FROM catalog.resource_token_stats") == 3
    await market.pool.execute(up)
    after = await market.pool.fetch(kept)
    assert [tuple(row) for row in after] == [tuple(row) for row in before] == [("live", 2, 20, 80), ("test", 1, 10, 40)]


async def test_one_dear_run_among_good_ones_is_no_loss(market: Market) -> None:
    created = await published(market, margin_rule="pause")
    await market.feed([receipt(created) for _ in range(5)] + [receipt(created, cost_usd="0.03")])
    assert market.kinds() == []
    unknown = [receipt(created, cost_usd=None) for _ in range(5)]
    await market.feed(unknown)
    assert market.kinds() == [], "an unknown cost is no cost to judge by"


async def test_two_replicas_act_once(
    database: Database, own_nats: Nats, credentials: Credentials, upstream: Upstream
) -> None:
    async with market_around(database, own_nats, credentials, upstream, replicas=2) as market:
        created = [await published(market, slug=f"r-{number}", margin_rule="pause") for number in range(5)]
        losses = [receipt(resource, cost_usd="0.02") for resource in created for _ in range(6)]
        random.Random(7).shuffle(losses)
        await market.feed(losses)
        assert Counter(market.kinds()) == {"paused_below_cost": 5}
        await market.sync(priced("m/a", "0.001", "0.01"), *OTHERS)
        told = Counter((notice.resource_id, notice.kind) for notice in {n.id: n for n in market.notices}.values())
        assert set(told.values()) == {1}
        for resource in created:
            assert (await market.stats(resource)).total.runs == 6


# Figures --------------------------------------------------------------------------------------------------------------


def recomputed(receipts: Iterable[Receipt]) -> dict[str, Any]:
    """The figures of receipts from scratch: the highest revision of each run counts."""
    latest: dict[Any, Receipt] = {}
    for each in receipts:
        if each.execution_id not in latest or latest[each.execution_id].revision < each.revision:
            latest[each.execution_id] = each
    runs = list(latest.values())
    times = sorted(run.timing.total_ms for run in runs if run.status == "succeeded")

    def total(amounts: Iterable[Decimal | None]) -> Decimal:
        return sum((amount for amount in amounts if amount is not None), Decimal(0))

    return {
        "runs": len(runs),
        "own_runs": sum(run.caller.id == run.owner for run in runs),
        "test_runs": sum(run.mode == "test" for run in runs),
        **{
            status: sum(run.status == status for run in runs)
            for status in ("succeeded", "failed", "canceled", "interrupted")
        },
        "failures": dict(Counter(run.code for run in runs if run.code is not None)),
        "model_usd": total(run.cost.model_usd for run in runs),
        "price_usd": total(run.cost.price_usd for run in runs),
        "margin_usd": total(run.cost.markup_usd for run in runs),
        "test_model_usd": total(run.cost.model_usd for run in runs if run.mode == "test"),
        "test_price_usd": total(run.cost.price_usd for run in runs if run.mode == "test"),
        "test_margin_usd": total(run.cost.markup_usd for run in runs if run.mode == "test"),
        "cost_unknown_runs": sum(run.cost.model_usd is None for run in runs),
        "median_ms": times[ceil(len(times) * 0.5) - 1] if times else None,
        "p95_ms": times[ceil(len(times) * 0.95) - 1] if times else None,
        "prompt_tokens": sum(run.usage.prompt_tokens or 0 for run in runs),
        "completion_tokens": sum(run.usage.completion_tokens or 0 for run in runs),
    }


def figures(shown: Figures) -> dict[str, Any]:
    return {name: getattr(shown, name) for name in Figures.model_fields}


def revisions(rng: random.Random, resource: Resource, ended: datetime) -> list[Receipt]:
    """One run with one to three revisions of its receipt."""
    status = rng.choice(["succeeded", "succeeded", "succeeded", "failed", "canceled", "interrupted"])
    code = rng.choice(["timeout", "upstream", "moderated"]) if status in {"failed", "interrupted"} else None
    facts: dict[str, Any] = {
        "execution_id": uuid4(),
        "caller": {"kind": "user", "id": rng.choice(["ann", "bob", "cy"])},
        "mode": rng.choice(["live", "live", "test"]),
        "status": status,
        "code": code,
        "finished_at": ended,
        "created_at": ended - timedelta(seconds=3),
        "timing": {"queued_ms": 0, "first_token_ms": None, "total_ms": rng.randint(1, 9000)},
        "price_usd": "0.01" if status == "succeeded" else "0",
    }
    known = f"0.00{rng.randint(1, 9999):04d}7"
    first = receipt(resource, **facts, cost_usd=rng.choice([known, None]))
    return [first] + [
        receipt(
            resource, **facts, revision=number, cost_usd=known, usage={"prompt_tokens": 7, "completion_tokens": number}
        )
        for number in range(2, rng.randint(2, 4))
    ]


@pytest.mark.parametrize("seed", [1, 2])
async def test_figures_are_right_whatever_comes_twice_or_out_of_order(market: Market, seed: int) -> None:
    rng = random.Random(seed)
    created = await published(market)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    moments = [midnight - timedelta(days=days, seconds=rng.choice([1, 40_000])) for days in range(4)] + [midnight]
    sent = [each for _ in range(60) for each in revisions(rng, created, rng.choice(moments))]
    deliveries = [*sent, *rng.sample(sent, len(sent) // 2)]
    rng.shuffle(deliveries)
    half = len(deliveries) // 2
    await market.feed(deliveries[:half])
    assert figures((await market.stats(created)).total) == recomputed(deliveries[:half])
    await market.feed(deliveries[half:])
    stats = await market.stats(created)
    assert figures(stats.total) == recomputed(sent)
    by_day: dict[date, list[Receipt]] = defaultdict(list)
    for each in sent:
        by_day[each.finished_at.date()].append(each)
    assert {day.day: figures(day) for day in stats.days} == {day: recomputed(runs) for day, runs in by_day.items()}
    assert [day.day for day in stats.days] == sorted(by_day)
    await market.feed(sent)
    assert await market.stats(created) == stats, "all of it once more changes nothing"
    # What today cost in all is kept beside the runs, and must not drift from them.
    await market.limit(key_daily_usd="1000")
    today = [each for each in sent if each.finished_at.date() == midnight.date()]
    budgets = await market.budgets()
    for mode, (key,) in (("live", budgets.today), ("test", budgets.today_in_test)):
        in_mode = recomputed([each for each in today if each.mode == mode])
        assert (key.mode, key.spent_usd, key.cost_unknown_runs) == (
            mode, in_mode["model_usd"], in_mode["cost_unknown_runs"],
        )  # fmt: skip


async def test_figures_have_a_first_and_a_last_day_and_an_owner(market: Market) -> None:
    created = await published(market)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    ends = [midnight - timedelta(days=3), midnight - timedelta(days=3, seconds=1), midnight + timedelta(days=1)]
    await market.feed(receipt(created, finished_at=moment, created_at=moment) for moment in ends)
    stats = await market.stats(created, days=4)
    assert (stats.total.runs, stats.since, stats.until) == (1, midnight.date() - timedelta(days=3), midnight.date())
    assert (await market.stats(created, days=5)).total.runs == 2
    assert (await refused(market.stats(created, owner="bob"))).code is ErrorCode.FORBIDDEN
    empty = await market.stats(await published(market, slug="fresh"))
    assert (empty.total.runs, empty.days, empty.total.median_ms) == (0, [], None)


async def test_what_cannot_be_read_holds_nothing_up(market: Market) -> None:
    created = await published(market)
    stream = market.parties.executor.js
    for body in (b"", b"{}", b"\xff", b'{"execution_id": 1}'):
        await stream.publish(EXECUTION_FINISHED.subject, body)
    preview, stranger = receipt(None), receipt(uuid4())
    await market.feed([preview, stranger, receipt(created)])
    assert (await market.stats(created)).total.runs == 1


async def test_a_receipt_that_cannot_be_written_is_put_off_alone(market: Market) -> None:
    created = await published(market)
    stream = market.parties.executor.js
    monstrous = {"queued_ms": 0, "first_token_ms": 0, "total_ms": 10**30}
    for each in (receipt(created), receipt(created, timing=monstrous), receipt(created)):
        await stream.publish(EXECUTION_FINISHED.subject, encode(each))

    async def counted() -> bool:
        return (await market.stats(created)).total.runs == 2

    await until(counted)
    consumer = await stream.consumer_info(RECEIPTS_STREAM.name, "catalog")
    assert (consumer.num_pending, consumer.num_ack_pending) == (0, 1)


async def test_measured_runs_make_the_expected_cost(market: Market) -> None:
    created = await published(market)
    guessed = created.breakdown
    usage = {"prompt_tokens": 1000, "completion_tokens": 90}
    runs = [receipt(created, usage=usage) for _ in range(4)]
    await market.feed([*runs, *runs, receipt(created, usage=usage, status="failed", code="timeout", price_usd="0")])
    measured = (await market.parties.get(created)).breakdown
    assert guessed is not None
    assert measured is not None
    assert (guessed.measured_runs, measured.measured_runs) == (0, 4)
    assert measured.expected.model_usd == Decimal("0.00118")
    assert measured.expected.price_usd == Decimal("0.01")
    assert measured.expected.markup_usd == Decimal("0.00882")


# Budgets --------------------------------------------------------------------------------------------------------------


async def test_a_creator_is_told_at_80_and_at_100_percent_once_a_day(market: Market) -> None:
    created = await published(market)
    limits: dict[str, Any] = {
        "key_daily_usd": "10",
        "caller_daily_usd": "5",
        "resources": [{"resource_id": str(created.id), "daily_usd": "4"}],
        "callers": [{"caller_id": "cy", "daily_usd": "100"}],
    }
    await market.limit(**limits)

    def told() -> list[tuple[str, int]]:
        return [
            (each.scope, each.percent)
            for each in sorted({e.id: e for e in market.reached}.values(), key=lambda e: e.id)
        ]

    async def spend(usd: str, **changes: Any) -> Receipt:
        run = receipt(created, cost_usd=usd, **changes)
        await market.feed([run])
        return run

    await spend("3.19")
    assert told() == []
    last = await spend("0.01")
    assert told() == [("resource", 80)]
    await market.feed([last, last])
    assert told() == [("resource", 80)], "the same receipt is spent once"
    await spend("1.80")
    assert told()[1:] == [("resource", 100), ("caller", 80), ("caller", 100)]
    ann = {"caller": {"kind": "user", "id": "ann"}}
    await spend("3", **ann)
    assert told()[4:] == [("key", 80)], "the limit for callers is not the creator's"
    await spend("2", **ann)
    assert told()[5:] == [("key", 100)]
    await spend("9", **ann)
    await market.limit(**limits)
    assert len(told()) == 6
    budgets = await market.budgets()
    assert {(each.scope, each.caller_id): (each.spent_usd, each.reached_percent) for each in budgets.today} == {
        ("key", None): (Decimal("19.00"), 100),
        ("resource", None): (Decimal("19.00"), 100),
        ("caller", "cy"): (Decimal(0), None),
        ("caller", "bob"): (Decimal("5.00"), 100),
    }
    await spend("1", finished_at=datetime.now(UTC) - timedelta(days=9))
    assert await market.budgets() == budgets, "another day's"


async def test_a_lowered_limit_is_told_at_once_and_a_corrected_cost_counts(market: Market) -> None:
    created = await published(market)
    first = receipt(created, cost_usd=None)
    await market.feed([first])
    shown = await market.limit(key_daily_usd="1")
    assert (shown.today[0].spent_usd, shown.today[0].cost_unknown_runs) == (Decimal(0), 1)
    known = receipt(
        created, execution_id=first.execution_id, revision=2, cost_usd="0.85", finished_at=first.finished_at
    )
    await market.feed([known, first])
    assert [each.percent for each in market.reached] == [80]
    shown = await market.limit(key_daily_usd="0.85")
    assert (shown.today[0].spent_usd, shown.today[0].cost_unknown_runs) == (Decimal("0.85"), 0)
    await market.settled()
    assert [(each.percent, each.daily_usd) for each in market.reached] == [
        (80, Decimal(1)),
        (80, Decimal("0.85")),
        (100, Decimal("0.85")),
    ]


async def test_runs_with_a_test_key_try_a_limit_out_and_use_up_none_of_it(market: Market) -> None:
    created = await published(market)
    await market.limit(key_daily_usd="1", resources=[{"resource_id": str(created.id), "daily_usd": "10"}])
    await market.feed([receipt(created, mode="test", cost_usd="0.9"), receipt(created, cost_usd="0.5")])
    budgets = await market.budgets()
    shown = [[(each.scope, each.mode, each.spent_usd, each.reached_percent) for each in states]
             for states in (budgets.today, budgets.today_in_test)]  # fmt: skip
    assert shown == [
        [("key", "live", Decimal("0.5"), None), ("resource", "live", Decimal("0.5"), None)],
        [("key", "test", Decimal("0.9"), 80), ("resource", "test", Decimal("0.9"), None)],
    ]
    await market.feed([receipt(created, cost_usd="0.3")])
    assert [(each.mode, each.percent, each.spent_usd) for each in market.reached] == [
        ("test", 80, Decimal("0.9")),
        ("live", 80, Decimal("0.8")),
    ]
    assert "test runs with your key" in market.reached[0].message


async def test_what_a_day_cost_is_told_apart_when_it_was_of_both_modes(market: Market) -> None:
    created = await published(market)
    unknown = receipt(None, mode="test", cost_usd=None)
    await market.feed([receipt(created), receipt(created), receipt(created, mode="test"), unknown])
    kept = """SELECT mode, scope, subject, model_usd, cost_unknown_runs FROM catalog.spending ORDER BY mode, scope, subject"""
    before = [tuple(row) for row in await market.pool.fetch(kept)]
    assert [row[:2] for row in before] == [
        (mode, scope) for mode in ("live", "test") for scope in ("caller", "key", "resource")
    ]
    migrations = Path(catalog_main.__file__).parent / "migrations"
    up, down = (migrations / "20261123000041_pre_spending_by_mode.sql").read_text().split("-- migrate:down")
    await market.pool.execute(down)
    together = await market.pool.fetchrow(
        "SELECT model_usd, cost_unknown_runs FROM catalog.spending WHERE scope = 'key'"
    )
    assert tuple(together) == (Decimal("0.006"), 1)
    await market.pool.execute(up)
    assert [tuple(row) for row in await market.pool.fetch(kept)] == before


async def test_limits_travel_to_executors(market: Market) -> None:
    created = await published(market)
    assert (await market.parties.resolve(str(created.id))).budgets.key_daily_usd is None
    other = await published(market, slug="other")
    await market.limit(
        key_daily_usd="3",
        caller_daily_usd="1",
        resources=[{"resource_id": str(created.id), "daily_usd": "2"}],
        callers=[{"caller_kind": "service", "caller_id": "shop", "daily_usd": "0"}],
    )
    one, two = await market.parties.resolve(str(created.id)), await market.parties.resolve(str(other.id))
    assert (one.budgets.key_daily_usd, one.budgets.resource_daily_usd) == (Decimal(3), Decimal(2))
    assert (two.budgets.key_daily_usd, two.budgets.resource_daily_usd) == (Decimal(3), None)
    assert [(each.caller_kind, each.caller_id, each.daily_usd) for each in one.budgets.callers] == [
        ("service", "shop", Decimal(0))
    ]
    assert (await market.parties.check(slug="draft")).budgets.caller_daily_usd == Decimal(1)
    assert (await market.budgets("bob")).key_daily_usd is None


async def test_limits_that_make_no_sense_are_refused(market: Market) -> None:
    created = await published(market)
    twice = [{"resource_id": str(created.id), "daily_usd": "1"}] * 2
    attempts: tuple[tuple[dict[str, Any], str], ...] = (
        ({"resources": twice}, "resources.1.resource_id"),
        ({"resources": [{"resource_id": str(uuid4()), "daily_usd": "1"}]}, "resources.0.resource_id"),
        ({"callers": [{"caller_id": "cy", "daily_usd": "1"}] * 2}, "callers.1.caller_id"),
    )
    for limits, path in attempts:
        error = await refused(market.limit(**limits))
        assert (error.code, error.body.fields[0].path) == (ErrorCode.INVALID, path)
    strange = await refused(market.limit("bob", resources=twice[:1]))
    assert strange.body.fields[0].message == "You have no such resource."


# Versions -------------------------------------------------------------------------------------------------------------


async def test_versions_say_what_each_edit_changed(market: Market) -> None:
    created = await market.parties.create()
    await market.parties.update(created, pricing={"mode": "fixed", "price_usd": "0.02"}, name="Other name")
    inputs = [{"name": "topic", "max_length": 50}, {"name": "tone", "type": "choice", "choices": ["calm", "wild"]}]
    config = {**draft()["openrouter_config"], "prompt_template": "{{tone}} {{topic}}"}
    await market.parties.update(created, inputs=inputs, openrouter_config=config, margin_rule="pause")
    page = await market.versions(created)
    assert (page.total, page.next_cursor) == (3, None)
    third, second, first = page.items
    assert (third.version, second.version, first.version, first.changes) == (3, 2, 1, [])
    assert [(change.path, change.before, change.after) for change in second.changes] == [
        ("name", "Haiku maker", "Other name"),
        ("pricing.price_usd", "0.01", "0.02"),
    ]
    changed = {change.path: (change.before, change.after) for change in third.changes}
    assert set(changed) == {
        "openrouter_config.prompt_template", "inputs.topic.max_length", "inputs.tone", "margin_rule",
    }  # fmt: skip
    assert changed["inputs.topic.max_length"] == (None, 50)
    assert changed["inputs.tone"][0] is None
    step = await market.versions(created, limit=2)
    assert [item.version for item in step.items] == [3, 2]
    assert step.items[1].changes == second.changes, "also at the end of a page"
    rest = await market.versions(created, limit=2, cursor=step.next_cursor)
    assert [item.version for item in rest.items] == [1]
    assert (await refused(market.versions(created, cursor="nonsense"))).code is ErrorCode.INVALID
    assert (await refused(market.versions(created, owner="bob"))).code is ErrorCode.NOT_FOUND


# What buyers see ------------------------------------------------------------------------------------------------------

SECRET = "MARKER"


async def test_a_buyer_sees_neither_prompt_nor_cost_nor_margin(market: Market) -> None:
    config = {
        "model_id": "m/a",
        "fallback_models": ["m/b"],
        "system_prompt": f"{SECRET} system",
        "prompt_template": f"{SECRET} prompt {{{{topic}}}}",
        "max_tokens": 77,
        "parameters": {"top_p": 0.123, "stop": [f"{SECRET} stop"]},
    }
    created = await published(
        market, openrouter_config=config, example_output="Rain on the tin roof", margin_rule="pause"
    )
    await market.limit(key_daily_usd="345.678")
    runs = [receipt(created, cost_usd="0.0043219", timing={"queued_ms": 0, "first_token_ms": 1, "total_ms": ms})
            for ms in (100, 200, 300)]  # fmt: skip
    runs.append(receipt(created, cost_usd="0.0043219", status="failed", code="upstream", price_usd="0"))
    runs += [receipt(created, status="canceled", cost_usd="0.0043219"), receipt(created, mode="test")]
    runs += [receipt(created, caller={"kind": "user", "id": "ann"}) for _ in range(9)]
    await market.feed(runs)
    await market.sync(priced("m/a", "0.0000012345", "0.0000067891", expiration_date="2027-01-31"), *OTHERS)
    listing = await market.listing()
    assert listing.measured is not None
    assert (listing.measured.runs, listing.measured.mode) == (5, "live")
    assert (listing.measured.success_rate, listing.measured.median_ms, listing.measured.p95_ms) == (0.75, 200, 300)
    assert (listing.example_output, listing.price_usd) == ("Rain on the tin roof", Decimal("0.01"))
    views = [listing, await market.as_buyer(created), await market.as_buyer(created, "ann")]
    assert views[0] == views[1] == views[2]
    shown = views[0].model_dump_json(exclude={"id", "updated_at"})  # random digits
    for secret in (
        SECRET, "m/a", "m/b", "0.0043219", "0.0056781", "0.0000012345", "0.0000067891", "345.678", "0.123", "77",
        "margin", "cost_usd", "model_usd", "markup", "system_prompt", "prompt_template", "fallback", "key", "budget",
        "breakdown", "notices",
    ):  # fmt: skip
        assert secret not in shown, secret
    assert "0.0043219" not in listing.model_dump_json()
    mine = await market.parties.get(created)
    assert SECRET in mine.model_dump_json(), "the creator sees it all"


async def test_the_price_of_a_free_model_is_not_told_by_a_badge(market: Market) -> None:
    await market.sync(priced("m/a:free", "0", "0"), entry("m/a"), *OTHERS)
    created = await published(market, openrouter_config=draft("m/a:free")["openrouter_config"])
    assert "free" in created.badges
    assert "free" not in (await market.listing()).badges


async def test_an_owner_looks_at_a_listing_before_it_is_one(market: Market) -> None:
    created = await market.parties.create()
    seen = await market.as_buyer(created, "ann")
    assert (seen.available, seen.measured) == (False, None)
    assert (await refused(market.as_buyer(created, "bob"))).code is ErrorCode.NOT_FOUND
    await market.parties.publish(created)
    assert (await market.as_buyer(created, "bob")).available
    await market.parties.delete(created)
    assert (await refused(market.as_buyer(created, "ann"))).code is ErrorCode.NOT_FOUND


async def test_measured_runs_with_a_test_key_are_marked_as_such(market: Market) -> None:
    created = await published(market)
    await market.feed([receipt(created, mode="test")])
    measured = (await market.listing()).measured
    assert measured is not None
    assert (measured.mode, measured.runs) == ("test", 1)
