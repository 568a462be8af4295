"""The CRM's exports: `customers`, every change of a customer, and `crm_customers`, snapshots.

A customer is known by number: what is drawn for it (name, city, the address after the second
change) depends on that number alone, so that both exports speak of the same people. Orders and
sales do not belong here; they ask `Customers` who existed on a day.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import fsum

import numpy as np
import polars as pl

from metalayer.sample.calendar import DAY, Calendar, pick
from metalayer.sample.draws import Draws, Ints
from metalayer.sample.export import Export
from metalayer.sample.words import CITIES, DOMAINS, FIRST_NAMES, LAST_NAMES, ascii_letters

FIRST_CUSTOMER_ID = 10_001
# Only the snapshots know a prospect; nothing at all knows UNKNOWN_CUSTOMER_ID and above.
FIRST_PROSPECT_ID = 700_000_001
UNKNOWN_CUSTOMER_ID = 900_000_001

ROWS_PER_CUSTOMER = 2.5
# Customers moved over from an older system in the first six hours of the run, of all customers.
MIGRATED = 0.35
MIGRATION_SECONDS = 6 * 3600
# People in the first snapshot, of those in the last; and how many of a month's have customers rows.
SNAPSHOT_BASE = 0.6
SNAPSHOT_KNOWN = 0.95
LEAVERS, RETURNERS = 0.03, 0.012
# Roughly what those who left take off the total of all snapshots.
STAYING = 0.99


@dataclass(frozen=True)
class People:
    """Who someone is, by customer number. `version` counts the changes of that attribute."""

    draws: Draws

    def first(self, who: Ints) -> Ints:
        """Position in FIRST_NAMES; a first name never changes."""
        return self.draws.below("first name", len(FIRST_NAMES), who)

    def last(self, who: Ints, version: Ints) -> Ints:
        """Position in LAST_NAMES."""
        return self.draws.below("last name", len(LAST_NAMES), who, version)

    def city(self, who: Ints, version: Ints) -> Ints:
        """Position in CITIES."""
        return self.draws.below("city", len(CITIES), who, version)

    def email(self, who: Ints, version: Ints) -> pl.Series:
        """`ana.reyes10001@example.org`, then `reyes10001@example.com`: unique by the number."""
        first = pick(_FIRST_IN_EMAIL, np.where(version % 2 == 0, self.first(who), len(FIRST_NAMES)))
        last = pick(_LAST_IN_EMAIL, self.last(who, np.zeros_like(who)))
        domain = self.draws.below("domain", len(DOMAINS), who, version)
        return first + last + pl.Series(who).cast(pl.String) + pick(_AT_DOMAINS, domain)

    def phone(self, who: Ints, version: Ints, city: Ints) -> pl.Series:
        """A fictional number in the city's area, written in one of five ways."""
        way = self.draws.choose("phone format", (35, 25, 15, 15, 10), who, version)
        line = self.draws.below("phone", 100, who, version)
        opening = pick(_PHONE_OPENINGS, city * len(_PHONE_FORMATS) + way)
        return opening + pick(_TWO_DIGITS, line)


@dataclass(frozen=True)
class Customers:
    """Every customer and every change, as columns.

    Attributes:
        created: second of the run in which each customer appears, ascending; one a customer.
        who: customer of each change (numbered from 0), changes ascending by `changed`.
        changed: second of each change; a customer's first is its creation.
        versions: per attribute, how often it had changed by then.
    """

    created: Ints
    who: Ints
    changed: Ints
    versions: dict[str, Ints]

    @property
    def migrated(self) -> int:
        """How many customers there are when the first day begins."""
        return int(np.searchsorted(self.created, MIGRATION_SECONDS))

    def existing(self, days: Ints) -> Ints:
        """How many customers exist when each day (counted from the run's first) begins."""
        return np.searchsorted(self.created, days * DAY, side="left").astype(np.int64)


def history(rows: int, calendar: Calendar, draws: Draws) -> Customers:
    """`rows` changes of about `rows / 2.5` customers, the first of each being its creation."""
    created = _creations(max(1, round(rows / ROWS_PER_CUSTOMER)), calendar)
    numbers = np.arange(rows - len(created), dtype=np.int64)
    changing = draws.below("who changes", len(created), numbers)
    earliest = created[changing] + 3600
    room = calendar.seconds - DAY // 2 - earliest
    moments = earliest + (room * draws.unit("when", numbers)).astype(np.int64)
    everyone = np.arange(len(created), dtype=np.int64)
    who, when = np.concatenate([everyone, changing]), np.concatenate([created, moments])
    by_customer = np.lexsort((when, who))
    who, when = who[by_customer], _strictly_rising(who[by_customer], when[by_customer])
    first = np.searchsorted(who, everyone)
    ordinal = np.arange(rows, dtype=np.int64) - first[who]
    changes = draws.choose("what changes", (20, 30, 40, 10), who, ordinal)
    by_time = np.lexsort((who, when))
    versions = {}
    for position, attribute in enumerate(("email", "phone", "address", "last_name")):
        changed = np.cumsum((changes == position) & (ordinal > 0), dtype=np.int64)
        versions[attribute] = (changed - changed[first[who]])[by_time]
    return Customers(created, who[by_time], when[by_time], versions)


def _creations(count: int, calendar: Calendar) -> Ints:
    migrated = min(count, int(count * MIGRATED) + 1)
    later = count - migrated
    at_once = np.arange(migrated, dtype=np.int64) * MIGRATION_SECONDS // migrated
    if not later:
        return at_once
    room = calendar.seconds - 2 * DAY
    return np.concatenate([at_once, DAY + np.arange(later, dtype=np.int64) * room // later])


def _strictly_rising(who: Ints, when: Ints) -> Ints:
    """Move a customer's later changes on by a second where two fell on the same one."""
    # A running maximum of (moment - position) is the moment pushed on by at least one a row;
    # a distance no moment reaches keeps each customer's maximum from the next one's.
    position, distance = np.arange(len(who), dtype=np.int64), np.int64(2**40)
    pushed: Ints = np.maximum.accumulate(when - position + who * distance)
    return pushed - who * distance + position


def customers(past: Customers, calendar: Calendar, draws: Draws, late: Ints) -> Export:
    """The delta `crm/customers`: one row per change. `late` months pass before it is delivered."""
    people = People(draws)
    month = calendar.month_of(calendar.first_days[0] + past.changed // DAY)

    def texts(rows: Ints) -> pl.DataFrame:
        who, changed = past.who[rows], past.changed[rows]
        number = who + FIRST_CUSTOMER_ID
        version = {attribute: of[rows] for attribute, of in past.versions.items()}
        city = people.city(number, version["address"])
        zip_end = draws.below("zip", 100, number, version["address"])
        return pl.DataFrame(
            {
                "customer_id": pl.Series(number).cast(pl.String),
                "first_name": pick(FIRST_NAMES, people.first(number)),
                "last_name": pick(LAST_NAMES, people.last(number, version["last_name"])),
                "email": people.email(number, version["email"]),
                "phone": people.phone(number, version["phone"], city),
                "city": pick(_CITY_NAMES, city),
                "state": pick(_STATES, city),
                "zip": pick(_ZIP_PREFIXES, city) + pick(_TWO_DIGITS, zip_end),
                "dob": pick(_BIRTHDAYS, draws.below("dob", len(_BIRTHDAYS), number)),
                "created_at": _created_text(past, who, calendar, draws),
                "updated_at": calendar.timestamp_of(changed),
                "_hash": draws.bits("customers row", rows),
            }
        )

    columns = (
        *("customer_id", "first_name", "last_name", "email", "phone", "city", "state", "zip"),
        *("dob", "created_at", "updated_at"),
    )
    delivered = np.minimum(month + late, calendar.months - 1)
    return Export("crm/customers", columns, delivered, texts)


def _created_text(past: Customers, who: Ints, calendar: Calendar, draws: Draws) -> pl.Series:
    """When each customer was created; migrated ones were in the three years before the run."""
    before = np.where(
        who < past.migrated, DAY + draws.below("age", 3 * 365 * DAY, who), np.int64(0)
    )
    moment = past.created[who] - before + calendar.first_days[0] * DAY
    # "2024-03-05 12:34:56.000000" cut to the second; faster than a format string.
    return pl.Series(moment * 1_000_000).cast(pl.Datetime("us")).cast(pl.String).str.head(19)


def crm_customers(rows: int, past: Customers, calendar: Calendar, draws: Draws) -> Export:
    """The snapshots `crm/crm_customers`: a growing base, about `rows` rows in all of them."""
    people = People(draws)
    number, joined = _members(rows, past, calendar)
    present = _presence(joined, calendar.months, draws)
    members = [np.flatnonzero(present(month)) for month in range(calendar.months)]
    delivered = np.repeat(np.arange(calendar.months), [len(month) for month in members])
    member = np.concatenate(members)

    def texts(rows: Ints) -> pl.DataFrame:
        who, month = number[member[rows]], delivered[rows]
        # One in four changes the e-mail address, and one in six moves, at some month of the run.
        email = draws.below("snapshot email", 4 * calendar.months, who) < month
        moved = draws.below("snapshot move", 6 * calendar.months, who) < month
        name = pick(FIRST_NAMES, people.first(who))
        return pl.DataFrame(
            {
                "customer_id": pl.Series(who).cast(pl.String),
                "customer_name": name
                + " "
                + pick(LAST_NAMES, people.last(who, np.zeros_like(who))),
                "email": people.email(who, email.astype(np.int64)),
                "region": pick(_REGIONS_OF_CITIES, people.city(who, moved.astype(np.int64))),
                "_hash": draws.bits("crm_customers row", rows),
            }
        )

    columns = ("customer_id", "customer_name", "email", "region")
    return Export("crm/crm_customers", columns, delivered, texts, is_snapshot=True)


def _members(rows: int, past: Customers, calendar: Calendar) -> tuple[Ints, Ints]:
    """The customer number and joining month of everyone who is ever in a snapshot."""
    months = calendar.months
    growth = np.arange(months, dtype=np.int64) / max(1, months - 1)
    share = SNAPSHOT_BASE + (1 - SNAPSHOT_BASE) * growth
    most = rows / (fsum(share) * STAYING)
    edges = np.maximum(1, np.floor(most * share + 0.5)).astype(np.int64)
    created = calendar.month_of(calendar.first_days[0] + past.created // DAY)
    born = np.searchsorted(created, np.arange(months + 1))
    numbers: list[Ints] = []
    prospects = 0
    for month, joining in enumerate(np.diff(edges, prepend=0)):
        known = min(int(joining * SNAPSHOT_KNOWN), int(born[month + 1] - born[month]))
        spaced = np.arange(known, dtype=np.int64) * (born[month + 1] - born[month]) // max(1, known)
        numbers.append(FIRST_CUSTOMER_ID + born[month] + spaced)
        others = int(joining) - known
        numbers.append(FIRST_PROSPECT_ID + prospects + np.arange(others, dtype=np.int64))
        prospects += others
    return np.concatenate(numbers), np.repeat(np.arange(months), np.diff(edges, prepend=0))


def _presence(joined: Ints, months: int, draws: Draws) -> Callable[[int], Ints]:
    """Which members a month's snapshot has: few leave, and some of those return."""
    member = np.arange(len(joined), dtype=np.int64)
    fate = draws.unit("fate", member)
    leaving = joined + 1 + draws.below("leaves", months, member)
    leaving[(fate >= LEAVERS) | (member == 0)] = months
    returning = leaving + 1 + draws.below("returns", 4, member)
    returning[fate >= RETURNERS] = months

    def present(month: int) -> Ints:
        is_present = (joined <= month) & ((month < leaving) | (month >= returning))
        return is_present.astype(np.int64)

    return present


_TWO_DIGITS = tuple(f"{number:02d}" for number in range(100))
_CITY_NAMES = tuple(city.name for city in CITIES)
_STATES = tuple(city.state for city in CITIES)
_ZIP_PREFIXES = tuple(city.zip_prefix for city in CITIES)
_REGIONS_OF_CITIES = tuple(city.region for city in CITIES)
# The last entry is for addresses that leave the first name out.
_FIRST_IN_EMAIL = (*(f"{ascii_letters(name)}." for name in FIRST_NAMES), "")
_LAST_IN_EMAIL = tuple(ascii_letters(name) for name in LAST_NAMES)
_AT_DOMAINS = tuple(f"@{domain}" for domain in DOMAINS)
# What comes before the last two digits.
_PHONE_FORMATS = ("({}) 555-01", "{}-555-01", "+1 {} 555 01", "{}.555.01", "{}55501")
_PHONE_OPENINGS = tuple(way.format(city.area) for city in CITIES for way in _PHONE_FORMATS)
_BIRTHDAYS = (
    pl.Series(range(-12_000, 12_700), dtype=pl.Int32).cast(pl.Date).cast(pl.String).to_list()
)
