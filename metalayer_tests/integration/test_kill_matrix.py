"""SIGKILL at each named point of land, stage, audit, publish and check, for run and PostgreSQL.

After each, whatever was killed, the next build finishes with no hand: the tables equal those of a
build that nobody disturbed, the ledger balances, nothing staged is left, and no reader ever saw
less than a whole month.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from metalayer_tests.integration.ground import (
    ALL,
    LEFTOVERS,
    UNBALANCED,
    Ground,
    Kept,
    Reader,
    open_ground,
    reading,
    report,
)
from metalayer_tests.integration.killing import Ended, Kill

VICTIMS = {"run": ("run",), "postgres": ("postgres",), "both": ("postgres", "run")}

# (point, when, call): what is killed there is about to do, or has just done, what it says.
ENTERED = ("landing.entries:Entries.insert", "after", 2)
SETTLED = ("landing.entries:settle", "after", 2)
REGISTERED = ("cli.running:register", "after", 1)
FILLED = [("jobs:fill_bronze", "after", 2), ("jobs:fill_from_select", "after", 2)]
STAGED = [
    ("warehouse.staging:finish_stage", "after", 4),
    ("warehouse.build:_settle", "before", 3),
]
PUBLISHED = [
    ("warehouse.publish:_swap", "before", 2),
    ("warehouse.publish:_swap", "after", 3),
    ("warehouse.publish:prune", "before", 4),
]
CHECKED = ("assets.tables:check_table", "after", 1)
#: Of a build of what has never been built.
FIRST_POINTS = [
    ("landing.parsed:parse", "before", 2),
    ("landing.records:Records.write", "after", 2),
    ("landing.parsed:parse", "after", 2),
    ENTERED,
    SETTLED,
    REGISTERED,
    ("warehouse.staging:create_stage", "after", 1),
    *FILLED,
    ("warehouse.staging:audit_stage", "after", 3),
    *STAGED,
    *PUBLISHED,
    ("assets.tables:check_table", "before", 2),
    CHECKED,
]
#: Of one that replaces published months. What is parsed or audited then is no different.
LATER_POINTS = [
    ENTERED,
    SETTLED,
    REGISTERED,
    *FILLED,
    *STAGED,
    *PUBLISHED,
    ("warehouse.publish:prune", "after", 2),
    ("warehouse.build:confirm", "before", 1),
    ("warehouse.build:confirm", "after", 1),
    CHECKED,
]
#: Where a report holds the tables, so that a month's rows are replaced inside its partition.
BESIDE_A_REPORT = [
    ("warehouse.publish:_replace_inside", "before", 1),
    ("warehouse.publish:_replace_inside", "after", 2),
]
ATOMIC = [("assets.atomic:put_in_place", "after", 2), ("assets.atomic:prune", "before", 1)]
#: Of the commands that write something else than a build: their name in `commands` first.
COMMAND_POINTS = [
    ("land", "landing.files:shutil.copyfile", "after", 2),
    ("withdraw", "landing.withdraw:_take_out", "after", 1),
    ("withdraw", "landing.withdraw:_move_aside", "before", 1),
    ("withdraw", "landing.withdraw:_move_aside", "after", 1),
    ("repair", "landing.repair:_land", "before", 1),
    ("repair", "landing.repair:_land", "after", 1),
    ("repair", "cli.repair:_say", "before", 1),
    ("widening", "warehouse.versions:_fit", "after", 1),
    ("widening", "warehouse.versions:publish", "before", 1),
    ("rollback", "warehouse.publish:_swap", "before", 1),
    ("rollback", "warehouse.publish:_swap", "after", 1),
    ("rollback", "warehouse.versions:aftermath", "before", 1),
    ("migrate", "warehouse.migrate:_execute", "after", 2),
    ("migrate", "warehouse.migrate:record", "after", 1),
    ("migrate", "warehouse.migrate:prepare", "after", 1),
]

#: A table of each layer, for a cell of the matrix to take a second or two; the last has no
#: provenance, so that a month of it can be confirmed.
FEW = ("bronze.orders", "silver.orders", "gold.dim_product")
#: Far down the graph of all tables.
DEEP = ("warehouse.publish:_swap", "after", 25)

CUSTOMERS = (
    "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at\n"
)
CRM = "customer_id,customer_name,email,region\n"
ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
SALES = "sales_id,product_id,customer_id,quantity,sale_date,sale_amount\n"

FIRST = {
    "crm/customers.csv": CUSTOMERS
    + "7,Ada,Berg,ada@example.org,,Aarhus,DK,8000,1990-01-01,2025-01-01,2025-01-03\n"
    + "8,Bo,Dahl,bo@example.org,,Odense,DK,5000,1980-01-01,2025-01-01,2025-02-03\n",
    "crm/crm_customers_2025-01.csv": CRM + "7,Ada Berg,ada@example.org,North\n",
    "crm/crm_customers_2025-02.csv": CRM + "7,Ada Berg,ada@example.org,N\n8,Bo,bo@b.org,Midwest\n",
    "erp/orders.csv": ORDERS
    + "1,7,P00001,2025-01-05,2,5.00,10.00,PAID\n"
    + "2,7,P00002,2025-01-06,0,5.00,0.00,PAID\n"
    + "3,8,P00001,2025-01-07,1,5.00,5.00,OPEN\n"
    + "4,8,P00001,2025-02-05,3,5.00,15.00,PAID\n"
    + "5,9,P00003,2025-02-06,1,7.00,7.00,CLOSED\n",
    "erp/erp_sales.csv": SALES + "1,1,7,2,2025-01-09,10.00\n2,1,8,3,2025-02-09,15.00\n",
}
#: A late row, an order that moves to a month that is new, one that turns to another product with
#: equal sums, a customer's correction, and a shrunken file.
LATER = {
    "erp/orders_late.csv": ORDERS
    + "6,7,P00001,2025-01-08,1,5.00,5.00,PAID\n"
    + "5,9,P00003,2025-03-06,1,7.00,7.00,CLOSED\n"
    + "4,8,P00002,2025-02-05,3,5.00,15.00,PAID\n",
    "crm/customers.csv": CUSTOMERS
    + "7,Ada,Berg,ada@example.org,,Skagen,DK,9990,1990-01-01,2025-01-01,2025-01-03\n"
    + "8,Bo,Dahl,bo@example.org,,Odense,DK,5000,1980-01-01,2025-01-01,2025-02-03\n",
    "erp/erp_sales.csv": SALES + "1,1,7,2,2025-01-09,10.00\n",
}


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    """Made once: a warehouse before, between and after builds that nobody disturbs."""
    folder = Path(tempfile.mkdtemp(dir=os.environ["TESTED_METALAYER_HOME"]))
    with open_ground(folder / "home", folder / "landing") as ground:
        ground.build_and_keep("empty", {}, ALL)
        ground.build_and_keep("few first", FIRST, FEW)
        ground.build_and_keep("few later", LATER, FEW)
        yield ground


@dataclass(frozen=True)
class Story:
    """A build of some tables: what there was before it, what lands, and what there is after."""

    before: str
    files: Mapping[str, str]
    after: str
    tables: tuple[str, ...] = FEW
    options: tuple[str, ...] = ()
    report: bool = False


FIRST_BUILD = Story("empty", FIRST, "few first")
SECOND_BUILD = Story("few first", LATER, "few later")


def _plays(ground: Ground, story: Story, point: tuple[str, str, int], victims: str) -> None:
    """The story with a kill in it, and then `build` until nothing is left to do: once."""
    kill = Kill(*point, VICTIMS[victims])
    before, after = ground.kept[story.before], ground.kept[story.after]
    ground.back_to(story.before)
    ground.land(story.files)
    build = ("build", *story.tables, *story.options)
    as_one = "--atomic" in story.options
    with reading(ground, story.tables, before.months, after.months, as_one=as_one) as reader:
        with report(ground, story.tables) if story.report else contextlib.nullcontext():
            killed = ground.commands.run(*build, kill=kill)
        assert killed.was_reached, killed.said
        _died_well(killed, kill)
        again = ground.commands.run(*build)
        assert again.code == 0, again.said
    _ends_well(ground, reader, after)


@dataclass(frozen=True)
class Command:
    """A command on a state that is kept, and what was kept of it and the build behind it."""

    before: str
    words: tuple[str, ...]
    after: str


#: What a contract that was wider for a time leaves behind.
WIDEN = "alter table silver.orders alter unit_price type numeric(24,4); select 1"
#: What undoes a migration, for it to have something to do.
UNMIGRATE = (
    "delete from meta.installed; drop table gold.agg_monthly_sales, gold.agg_daily_sales cascade; "
    "select 1"
)


@pytest.fixture(scope="module")
def commands(ground: Ground) -> Mapping[str, Command]:
    """Each command once with nobody disturbing it."""
    outside = ground.settings.home.parent / "outside"
    outside.mkdir()
    for name, content in LATER.items():
        (outside / name.rpartition("/")[2]).write_text(content)
    ground.back_to("few first")
    fix = outside / "fix.csv"
    assert ground.commands.run("rejects", "--export", str(fix)).code == 0
    assert fix.read_text().count(",0,5.00,0.00,") == 1
    fix.write_text(fix.read_text().replace(",0,5.00,0.00,", ",1,5.00,5.00,"))
    ground.ask(UNMIGRATE)
    ground.keep("unmigrated")
    ground.kept["unmigrated"] = ground.kept["few first"]
    late = tuple(str(outside / name.rpartition("/")[2]) for name in LATER)
    ground.back_to("few later")
    ground.ask(WIDEN)
    ground.keep("widened")
    ground.kept["widened"] = ground.state(ALL)
    back = ("rollback", "silver.orders", "2025-01", "--to", "1")
    found = {
        "land": Command("few first", ("land", *late), "landed"),
        "withdraw": Command(
            "few later", ("land", "--withdraw", "erp/orders_late.csv"), "withdrawn"
        ),
        "repair": Command("few first", ("land", "--repair", str(fix)), "repaired"),
        "rollback": Command("few later", back, "back"),
        "widening": Command("widened", back, "back and wider"),
        "migrate": Command("unmigrated", ("migrate",), "migrated"),
    }
    for command in found.values():
        ground.back_to(command.before)
        ended = ground.commands.run(*command.words)
        assert ended.code == 0, ended.said
        ground.build_and_keep(command.after, {}, FEW)
        unchanged = command.before == "unmigrated"
        assert (ground.kept[command.after] == ground.kept[command.before]) is unchanged
    return found


@pytest.mark.parametrize(
    ("name", "point", "victims"),
    [
        pytest.param(name, point, victims, id=f"{point[1]} {point[0].rpartition(':')[2]}-{victims}")
        for name, *point in COMMAND_POINTS
        for victims in (VICTIMS if name != "land" else ("run",))
    ],
)
def test_a_command(
    ground: Ground,
    commands: Mapping[str, Command],
    name: str,
    point: tuple[str, str, int],
    victims: str,
) -> None:
    command = commands[name]
    kill = Kill(*point, VICTIMS[victims])
    before, after = ground.kept[command.before], ground.kept[command.after]
    ground.back_to(command.before)
    with reading(ground, FEW, before.months, after.months) as reader:
        killed = ground.commands.run(*command.words, kill=kill)
        assert killed.was_reached, killed.said
        _died_well(killed, kill)
        again = ground.commands.run(*command.words)
        assert again.code == 0, again.said
        built = ground.commands.run("build", *FEW)
        assert built.code == 0, built.said
    _ends_well(ground, reader, after)
    if name == "migrate":
        assert ground.commands.run("migrate", "--plan").said.startswith("Nothing to migrate")


def _ends_well(ground: Ground, reader: Reader, after: Kept) -> None:
    """All is as if nobody had disturbed it, and no reader saw less than whole months."""
    assert reader.wrong == []
    assert reader.looks > 1
    assert ground.visible(ALL) == after.months
    assert ground.recorded() == after.recorded
    assert ground.ask(UNBALANCED) == []
    assert ground.ask(LEFTOVERS) == []


def _died_well(killed: Ended, kill: Kill) -> None:
    if "run" in kill.victims:
        assert killed.code == -9
        return
    # It may have been through with PostgreSQL, and found that all is done.
    assert killed.code in (0, 1), killed.said
    assert "Traceback" not in killed.said
    assert "defect" not in killed.said


def _matrix(points: Sequence[tuple[str, str, int]]) -> pytest.MarkDecorator:
    cells = [
        pytest.param(point, victims, id=f"{point[1]} {point[0].rpartition(':')[2]}-{victims}")
        for point in points
        for victims in VICTIMS
    ]
    return pytest.mark.parametrize(("point", "victims"), cells)


@_matrix(FIRST_POINTS)
def test_a_first_build(ground: Ground, point: tuple[str, str, int], victims: str) -> None:
    _plays(ground, FIRST_BUILD, point, victims)


@_matrix(LATER_POINTS)
def test_a_build_that_replaces_months(
    ground: Ground, point: tuple[str, str, int], victims: str
) -> None:
    _plays(ground, SECOND_BUILD, point, victims)


@_matrix(BESIDE_A_REPORT)
def test_a_build_beside_a_report(ground: Ground, point: tuple[str, str, int], victims: str) -> None:
    _plays(ground, replace(SECOND_BUILD, report=True), point, victims)


@_matrix(ATOMIC)
def test_an_atomic_build(ground: Ground, point: tuple[str, str, int], victims: str) -> None:
    _plays(ground, replace(SECOND_BUILD, options=("--atomic",)), point, victims)


@_matrix([DEEP])
def test_all_tables(ground: Ground, point: tuple[str, str, int], victims: str) -> None:
    if "all later" not in ground.kept:
        ground.back_to("empty")
        ground.build_and_keep("all first", FIRST, ALL)
        ground.build_and_keep("all later", LATER, ALL)
    _plays(ground, Story("empty", FIRST, "all first", ALL), point, victims)
    _plays(ground, Story("all first", LATER, "all later", ALL), point, victims)
