with lines as (
    select month_of(order_date) as month, product_key, total_amount as booked, quantity as ordered,
           0 as invoiced, 0 as billed
    from gold.fact_orders
    where status <> 'CANCELLED'
    union all
    select month_of(sale_date), product_key, 0, 0, sale_amount, quantity
    from gold.fact_sales
), sums as (
    select
        l.month,
        coalesce(p.product_code, 'UNKNOWN') as product_code,
        money(sum(l.booked)) as booked_amount,
        sum(l.ordered)::bigint as booked_units,
        money(sum(l.invoiced)) as invoiced_amount,
        sum(l.billed)::bigint as invoiced_units
    from lines as l
    left join gold.dim_product as p on p.product_key = l.product_key
    group by all
), explained as (
    select
        *,
        money(booked_amount - invoiced_amount) as difference,
        case
            when booked_units = 0 then 'not booked'
            when invoiced_units = 0 then 'not invoiced'
            when difference = 0 then 'match'
            when abs(difference) * 100 <= booked_amount then 'within tolerance'
            when booked_units = invoiced_units then 'units equal, price differs'
            else 'unexplained'
        end as explanation
    from sums
)
select
    *,
    explanation in ('match', 'within tolerance', 'units equal, price differs') as is_explained
from explained
