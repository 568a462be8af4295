-- gold.agg_monthly_sales: booked, revenue and invoiced of each month with orders or sales.
-- grain: month
-- Orders are grouped by customer first: counting distinct customers outright would sort every order.
with orders as (
    select
        *,
        cast(date_trunc('month', order_date) as date) as month
    from gold.fact_orders
    where order_date >= :start and order_date < :end
),

sales as (
    select
        *,
        cast(date_trunc('month', sale_date) as date) as month
    from gold.fact_sales
    where sale_date >= :start and sale_date < :end
),

customers as (
    select
        month,
        customer_id,
        count(*) as orders,
        sum(quantity) as units,
        sum(total_amount) as booked_amount,
        sum(total_amount) filter (where status = 'COMPLETED') as revenue,
        sum(total_amount) filter (where status = 'CANCELLED') as cancelled_amount
    from orders
    group by month, customer_id
),

booked as (
    select
        month,
        sum(orders) as orders,
        sum(units) as units,
        count(*) as buyers,
        sum(booked_amount) as booked_amount,
        sum(revenue) as revenue,
        sum(cancelled_amount) as cancelled_amount
    from customers
    group by month
),

invoiced as (
    select
        month,
        sum(sale_amount) as invoiced_amount,
        count(*) as invoices
    from sales
    group by month
)

select
    coalesce(booked.month, invoiced.month) as month,
    cast(coalesce(booked.orders, 0) as bigint) as orders,
    cast(coalesce(booked.units, 0) as bigint) as units,
    coalesce(booked.buyers, 0) as buyers,
    coalesce(booked.booked_amount, 0) as booked_amount,
    coalesce(booked.revenue, 0) as revenue,
    coalesce(booked.cancelled_amount, 0) as cancelled_amount,
    coalesce(invoiced.invoiced_amount, 0) as invoiced_amount,
    coalesce(invoiced.invoices, 0) as invoices
from booked
full outer join invoiced
    on booked.month = invoiced.month
