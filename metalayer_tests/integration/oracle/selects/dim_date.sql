select
    as_date_key(d) as date_key,
    d as date,
    year(d)::bigint as year,
    quarter(d)::bigint as quarter,
    month(d)::bigint as month_of_year,
    day(d)::bigint as day_of_month,
    weekofyear(d)::bigint as iso_week,
    isodow(d)::bigint as iso_day_of_week,
    isodow(d) in (6, 7) as is_weekend,
    month_of(d) as month_start
from (
    select unnest(generate_series($first::date, $end::date - 1, interval 1 day))::date as d
)
