-- gold.dim_date: every day of the months, from the first to the last in which there are rows.
-- grain: date_key
-- The day of the week is its distance from the week's Monday: engines number weekdays differently.
with days as (
    select
        generate_series(
            cast(:start as timestamp), cast(:end as timestamp) - interval '1 day', interval '1 day'
        ) as midnight
),

numbered as (
    select
        midnight,
        cast(extract(day from midnight - date_trunc('week', midnight)) as bigint) + 1 as iso_day_of_week
    from days
)

select
    cast(to_char(midnight, 'YYYYMMDD') as bigint) as date_key,
    cast(midnight as date) as date,
    cast(extract(year from midnight) as bigint) as year,
    cast(extract(quarter from midnight) as bigint) as quarter,
    cast(extract(month from midnight) as bigint) as month_of_year,
    cast(extract(day from midnight) as bigint) as day_of_month,
    cast(extract(week from midnight) as bigint) as iso_week,
    iso_day_of_week,
    iso_day_of_week >= 6 as is_weekend,
    cast(date_trunc('month', midnight) as date) as month_start
from numbered
