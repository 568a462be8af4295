-- gold.customer_360: each customer with news in a month, as of that month's end.
-- grain: customer_id, month
-- News are a version that began, an order or an invoiced sale. What a customer did before the window comes in
-- as one row of the month before it, so that the running totals of every month in the window include it.
with touched as (
    select customer_id
    from gold.fact_orders
    where order_date >= :start and order_date < :end
    union
    select customer_id
    from gold.fact_sales
    where sale_date >= :start and sale_date < :end
    union
    select customer_id
    from gold.dim_customer
    where valid_from >= :start and valid_from < :end and customer_key <> 0
),

earlier as (
    select
        customer_id,
        order_date as ordered_on,
        case when status = 'COMPLETED' then total_amount end as revenue,
        cast(null as timestamp) as valid_from
    from gold.fact_orders
    where order_date < :start and status <> 'CANCELLED'
    union all
    select
        customer_id,
        cast(null as date) as ordered_on,
        cast(null as numeric(18, 2)) as revenue,
        valid_from
    from gold.dim_customer
    where valid_from < :start and customer_key <> 0
),

history as (
    select
        customer_id,
        cast(cast(:start as date) - interval '1 month' as date) as month,
        min(ordered_on) as first_ordered_on,
        max(ordered_on) as last_ordered_on,
        count(ordered_on) as orders,
        sum(revenue) as revenue,
        0 as orders_in_month,
        cast(null as numeric(18, 2)) as invoiced,
        max(valid_from) as valid_from
    from earlier
    where customer_id in (select touched.customer_id from touched)
    group by customer_id
    union all
    select
        customer_id,
        cast(date_trunc('month', order_date) as date) as month,
        case when status <> 'CANCELLED' then order_date end as first_ordered_on,
        case when status <> 'CANCELLED' then order_date end as last_ordered_on,
        case when status <> 'CANCELLED' then 1 else 0 end as orders,
        case when status = 'COMPLETED' then total_amount end as revenue,
        1 as orders_in_month,
        cast(null as numeric(18, 2)) as invoiced,
        cast(null as timestamp) as valid_from
    from gold.fact_orders
    where order_date >= :start and order_date < :end
    union all
    select
        customer_id,
        cast(date_trunc('month', sale_date) as date) as month,
        cast(null as date) as first_ordered_on,
        cast(null as date) as last_ordered_on,
        0 as orders,
        cast(null as numeric(18, 2)) as revenue,
        0 as orders_in_month,
        sale_amount as invoiced,
        cast(null as timestamp) as valid_from
    from gold.fact_sales
    where sale_date >= :start and sale_date < :end
    union all
    select
        customer_id,
        cast(date_trunc('month', valid_from) as date) as month,
        cast(null as date) as first_ordered_on,
        cast(null as date) as last_ordered_on,
        0 as orders,
        cast(null as numeric(18, 2)) as revenue,
        0 as orders_in_month,
        cast(null as numeric(18, 2)) as invoiced,
        valid_from
    from gold.dim_customer
    where valid_from >= :start and valid_from < :end and customer_key <> 0
),

-- The rows of a month are peers in both windows: each has the totals of the whole month, and any one will do.
running as (
    select
        customer_id,
        month,
        min(first_ordered_on) over as_of as first_order_on,
        max(last_ordered_on) over as_of as last_order_on,
        sum(orders) over as_of as orders,
        coalesce(sum(revenue) over as_of, 0) as lifetime_value,
        sum(orders_in_month) over in_month as orders_in_month,
        coalesce(sum(invoiced) over in_month, 0) as invoiced_in_month,
        max(valid_from) over as_of as valid_from,
        -- Through timestamps: what two dates differ by is a number here and an interval elsewhere.
        cast(
            extract(
                day from month + interval '1 month' - interval '1 day'
                - cast(max(last_ordered_on) over as_of as timestamp)
            ) as bigint
        ) as recency_days,
        row_number() over in_month as number
    from history
    window
        as_of as (partition by customer_id order by month),
        in_month as (partition by customer_id, month)
),

months as (
    select *
    from running
    where number = 1 and month >= :start
),

versions as (
    select
        customer_key,
        customer_id,
        valid_from,
        customer_name,
        email,
        region,
        city,
        state,
        is_deleted
    from gold.dim_customer
    where valid_from < :end and customer_key <> 0
),

profiles as (
    select
        months.customer_id,
        months.month,
        coalesce(versions.customer_key, 0) as customer_key,
        versions.customer_name,
        versions.email,
        versions.region,
        versions.city,
        versions.state,
        coalesce(versions.is_deleted, false) as is_deleted,
        months.first_order_on,
        months.last_order_on,
        months.orders,
        months.lifetime_value,
        months.orders_in_month,
        months.invoiced_in_month,
        months.recency_days
    from months
    left join versions
        on months.customer_id = versions.customer_id and months.valid_from = versions.valid_from
),

scored as (
    select
        *,
        case
            when recency_days <= 30 then 5
            when recency_days <= 60 then 4
            when recency_days <= 90 then 3
            when recency_days <= 180 then 2
            else 1
        end as recency_score,
        case
            when orders >= 20 then 5
            when orders >= 10 then 4
            when orders >= 5 then 3
            when orders >= 2 then 2
            else 1
        end as frequency_score,
        case
            when lifetime_value >= 10000 then 5
            when lifetime_value >= 5000 then 4
            when lifetime_value >= 1000 then 3
            when lifetime_value >= 100 then 2
            else 1
        end as monetary_score
    from profiles
)

select
    customer_id,
    month,
    customer_key,
    customer_name,
    email,
    region,
    city,
    state,
    is_deleted,
    first_order_on,
    last_order_on,
    cast(orders as bigint) as orders,
    lifetime_value,
    cast(orders_in_month as bigint) as orders_in_month,
    invoiced_in_month,
    recency_days,
    cast(recency_score as bigint) as recency_score,
    cast(frequency_score as bigint) as frequency_score,
    cast(monetary_score as bigint) as monetary_score,
    case
        when orders = 0 then 'Prospect'
        when recency_score >= 4 and frequency_score >= 4 and monetary_score >= 4 then 'Champion'
        when frequency_score >= 3 and recency_score >= 3 then 'Loyal'
        when orders = 1 and recency_score >= 4 then 'New'
        when recency_score <= 2 and (frequency_score >= 3 or monetary_score >= 4) then 'At risk'
        when recency_score = 1 then 'Dormant'
        else 'Active'
    end as segment
from scored
