"""Contract of `gold.dim_date`."""

import datetime as dt

from metalayer.contracts.contract import Contract, column, key, month_column


class DimDate(Contract):
    """One day. Weeks are ISO weeks: they begin on Monday and may belong to the year beside."""

    date_key: int = key("The day as the number yyyymmdd")
    date: dt.date = month_column("The day")
    year: int = column("Calendar year")
    quarter: int = column("Quarter of the year", ge=1, le=4)
    month_of_year: int = column("Month of the year", ge=1, le=12)
    day_of_month: int = column("Day of the month", ge=1, le=31)
    iso_week: int = column("ISO week of the year", ge=1, le=53)
    iso_day_of_week: int = column("Day of the ISO week, 1 is Monday", ge=1, le=7)
    is_weekend: bool = column("Whether the day is a Saturday or Sunday")
    month_start: dt.date = column("First day of the day's month")

    class Table:
        owner = "team:sales-data"
        readers = ("analyst", "bi", "engineer", "steward")
