-- gold.sales_reconciliation: what was booked against what was invoiced, by product and month.
-- grain: month, product_code
-- Orders and sales name no common document, so product and month is as close as they can be compared.
with booked as (
    select
        cast(date_trunc('month', order_date) as date) as month,
        product_key,
        sum(total_amount) as booked_amount,
        sum(quantity) as booked_units,
        0 as invoiced_amount,
        0 as invoiced_units
    from gold.fact_orders
    where order_date >= :start and order_date < :end and status <> 'CANCELLED'
    group by cast(date_trunc('month', order_date) as date), product_key
),

invoiced as (
    select
        cast(date_trunc('month', sale_date) as date) as month,
        product_key,
        0 as booked_amount,
        0 as booked_units,
        sum(sale_amount) as invoiced_amount,
        sum(quantity) as invoiced_units
    from gold.fact_sales
    where sale_date >= :start and sale_date < :end
    group by cast(date_trunc('month', sale_date) as date), product_key
),

products as (
    select
        product_key,
        product_code
    from gold.dim_product
    where first_seen_on < :end
),

either as (
    select * from booked
    union all
    select * from invoiced
),

compared as (
    select
        either.month,
        coalesce(products.product_code, 'UNKNOWN') as product_code,
        sum(either.booked_amount) as booked_amount,
        sum(either.booked_units) as booked_units,
        sum(either.invoiced_amount) as invoiced_amount,
        sum(either.invoiced_units) as invoiced_units,
        sum(either.booked_amount) - sum(either.invoiced_amount) as difference
    from either
    left join products
        on either.product_key = products.product_key
    group by either.month, coalesce(products.product_code, 'UNKNOWN')
),

explained as (
    select
        *,
        case
            when booked_units = 0 then 'not booked'
            when invoiced_units = 0 then 'not invoiced'
            when difference = 0 then 'match'
            when abs(difference) <= 0.01 * booked_amount then 'within tolerance'
            when booked_units = invoiced_units then 'units equal, price differs'
            else 'unexplained'
        end as explanation
    from compared
)

select
    month,
    product_code,
    booked_amount,
    cast(booked_units as bigint) as booked_units,
    invoiced_amount,
    cast(invoiced_units as bigint) as invoiced_units,
    difference,
    explanation in ('match', 'within tolerance', 'units equal, price differs') as is_explained,
    explanation
from explained
