-- gold.business_kpis: eleven figures of each month in which anything happened.
-- grain: month, kpi
-- A figure is taken from the table that defines it; only what no table has is counted here.
with sales as (
    select *
    from gold.agg_monthly_sales
    where month >= :start and month < :end
),

order_states as (
    select
        cast(date_trunc('month', order_date) as date) as month,
        count(*) as orders,
        count(*) filter (where status = 'COMPLETED') as completed,
        count(*) filter (where status = 'CANCELLED') as cancelled
    from gold.fact_orders
    where order_date >= :start and order_date < :end
    group by cast(date_trunc('month', order_date) as date)
),

buyers as (
    select
        activity_month as month,
        sum(buyers) as buyers,
        sum(buyers) filter (where months_since_first > 0) as returning_buyers
    from gold.customer_cohorts
    where activity_month >= :start and activity_month < :end
    group by activity_month
),

active as (
    select
        month,
        count(*) filter (where orders_in_month > 0) as customers
    from gold.customer_360
    where month >= :start and month < :end
    group by month
),

versions as (
    select
        customer_id,
        valid_from
    from gold.dim_customer
    where valid_from >= :start and valid_from < :end and customer_key <> 0
),

first_versions as (
    select
        versions.customer_id,
        min(versions.valid_from) as valid_from
    from versions
    where
        not exists (
            select 1
            from gold.dim_customer as earlier
            where
                earlier.customer_id = versions.customer_id
                and earlier.valid_from < :start
                and earlier.customer_key <> 0
        )
    group by versions.customer_id
),

newcomers as (
    select
        cast(date_trunc('month', valid_from) as date) as month,
        count(*) as customers
    from first_versions
    group by cast(date_trunc('month', valid_from) as date)
),

months as (
    select month from sales
    union
    select month from active
    union
    select cast(date_trunc('month', valid_from) as date) from versions
),

figures as (
    select
        months.month,
        coalesce(sales.revenue, 0) as revenue,
        coalesce(sales.booked_amount, 0) as booked_amount,
        coalesce(sales.invoiced_amount, 0) as invoiced_amount,
        coalesce(sales.orders, 0) as orders,
        coalesce(sales.units, 0) as units,
        coalesce(sales.buyers, 0) as buyers,
        coalesce(round(sales.revenue / nullif(order_states.completed, 0), 2), 0) as average_order_value,
        coalesce(
            round(order_states.cancelled / cast(order_states.orders as numeric(20, 4)), 4), 0
        ) as cancellation_rate,
        coalesce(newcomers.customers, 0) as new_customers,
        coalesce(active.customers, 0) as active_customers,
        coalesce(round(buyers.returning_buyers / buyers.buyers, 4), 0) as repeat_rate
    from months
    left join sales on months.month = sales.month
    left join order_states on months.month = order_states.month
    left join buyers on months.month = buyers.month
    left join active on months.month = active.month
    left join newcomers on months.month = newcomers.month
),

kpis as (
    select
        listed.kpi,
        listed.unit
    from (
        values
        ('revenue', 'currency'),
        ('booked_amount', 'currency'),
        ('invoiced_amount', 'currency'),
        ('orders', 'count'),
        ('units', 'count'),
        ('buyers', 'count'),
        ('average_order_value', 'currency'),
        ('cancellation_rate', 'ratio'),
        ('new_customers', 'count'),
        ('active_customers', 'count'),
        ('repeat_rate', 'ratio')
    ) as listed (kpi, unit)
)

select
    figures.month,
    kpis.kpi,
    cast(
        case kpis.kpi
            when 'revenue' then figures.revenue
            when 'booked_amount' then figures.booked_amount
            when 'invoiced_amount' then figures.invoiced_amount
            when 'orders' then figures.orders
            when 'units' then figures.units
            when 'buyers' then figures.buyers
            when 'average_order_value' then figures.average_order_value
            when 'cancellation_rate' then figures.cancellation_rate
            when 'new_customers' then figures.new_customers
            when 'active_customers' then figures.active_customers
            when 'repeat_rate' then figures.repeat_rate
        end as numeric(20, 4)
    ) as value,
    kpis.unit
from figures
cross join kpis
