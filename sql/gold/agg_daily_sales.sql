-- gold.agg_daily_sales: orders, units, buyers and amounts of each day with orders.
-- grain: order_date
-- Grouped by customer first: counting distinct customers outright would sort every order.
with customers as (
    select
        order_date,
        customer_id,
        count(*) as orders,
        sum(quantity) as units,
        sum(total_amount) as booked_amount,
        sum(total_amount) filter (where status = 'COMPLETED') as revenue,
        sum(total_amount) filter (where status = 'CANCELLED') as cancelled_amount
    from gold.fact_orders
    where order_date >= :start and order_date < :end
    group by order_date, customer_id
)

select
    order_date,
    cast(sum(orders) as bigint) as orders,
    cast(sum(units) as bigint) as units,
    count(*) as buyers,
    sum(booked_amount) as booked_amount,
    coalesce(sum(revenue), 0) as revenue,
    coalesce(sum(cancelled_amount), 0) as cancelled_amount
from customers
group by order_date
