"""Parts of the console without I/O: what a form of inputs sends, charts, how to call a resource, scripts and their addresses."""

from __future__ import annotations

import json
import re
import shlex
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from contracts.catalog import InputField
from contracts.market import ResourceStats
from services.console import charts, figures, views
from services.console.api import ApiError
from services.console.forms import Form
from services.console.inputs import input_values
from services.console.snippets import snippets
from services.console.views import STATIC, static_file, static_url
from services.gateway import examples


def test_a_form_sends_each_input_as_its_type_and_leaves_out_what_is_empty() -> None:
    types = {
        "topic": "text",
        "count": "number",
        "share": "number",
        "loud": "boolean",
        "calm": "boolean",
        "note": "text",
    }
    fields = [InputField.model_validate({"name": name, "type": kind}) for name, kind in types.items()]
    form = Form({"input.topic": "1", "input.count": "7", "input.share": "2.5", "input.loud": "true", "input.note": ""})
    values = input_values(form, fields)
    assert values == {"topic": "1", "count": 7, "share": 2.5, "loud": True, "calm": False}
    assert isinstance(values["count"], int)


def test_a_number_that_is_none_is_said_at_its_field() -> None:
    with pytest.raises(ApiError) as refused:
        input_values(Form({"input.count": "many"}), [InputField(name="count", type="number")])
    assert refused.value.problem.errors[0].path == "input.count"


def test_lines_stay_within_the_chart_and_break_where_nothing_is_known() -> None:
    values = [Decimal(-1), None, Decimal(3), Decimal(0)]
    pieces = charts.line(values, Decimal(3), Decimal(-1))
    assert len(pieces) == 2
    points = [tuple(map(float, point.split(","))) for piece in pieces for point in piece.split()]
    assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in points)
    highest, lowest = min(y for _, y in points), max(y for _, y in points)
    assert (highest, lowest) == (4, charts.HEIGHT - 4)
    assert highest < charts.height_of(Decimal(0), Decimal(3), Decimal(-1)) < lowest


def test_a_day_without_runs_has_its_place_and_no_bar() -> None:
    bars = charts.bars([0, 2, 0, 4], 4)
    assert [bar.height for bar in bars] == [(charts.HEIGHT - 4) / 2, charts.HEIGHT - 4]
    assert bars[1].x > charts.WIDTH * 3 / 4
    assert all(bar.y + bar.height == charts.HEIGHT for bar in bars)


def test_the_figures_of_a_resource_are_drawn_over_all_days() -> None:
    stats = ResourceStats.model_validate(examples.STATS)
    drawn = figures.drawn(stats.model_copy(update={"since": date(2026, 11, 1), "until": stats.until}))
    assert len(drawn.runs) == len([day for day in stats.days if day.runs])
    assert drawn.highest_usd == max(day.price_usd for day in stats.days)
    assert drawn.median


def test_what_is_to_be_copied_keeps_every_character() -> None:
    awkward = InputField(name="tone", type="choice", choices=['don\'t "care" $HOME `id` \\'])
    ways = {way.title: way.code for way in snippets("http://gateway", "o'hara/slug", [awkward])}
    body = shlex.split(ways["curl"].replace("\\\n", " "))[-1]
    assert json.loads(body)["input"] == {"tone": 'don\'t "care" $HOME `id` \\'}
    compile(ways["Python"], "shown", "exec")
    assert json.loads(shlex.split(ways["NATS"].replace("\\\n", " "))[3])["resource"] == "o'hara/slug"


def test_scripts_import_each_other_by_the_address_that_pages_use() -> None:
    found = re.findall(r'from "([^"]+)"', static_file("upload.js").decode())
    assert found == [static_url("console.js"), static_url("run.js")]
    assert all(b'"./' not in static_file(name) for name in STATIC if name.endswith(".js"))


def test_every_rule_of_the_style_sheet_is_used() -> None:
    rules = re.sub(r'/\*.*?\*/|url\("[^"]*"\)', "", static_file("console.css").decode(), flags=re.DOTALL)
    folder = Path(views.__file__).parent
    pages = "".join(path.read_text() for kind in ("html", "js", "py") for path in folder.rglob(f"*.{kind}"))
    words = set(re.findall(r"[\w-]+", pages))
    assert set(re.findall(r"\.([a-zA-Z][\w-]*)", rules)) - words == set()
