with ordered as (
    select
        month_of(order_date) as month,
        count(*) as orders,
        sum(quantity) as units,
        count(distinct customer_id) as buyers,
        sum(total_amount) as booked_amount,
        sum(total_amount) filter (where status = 'COMPLETED') as revenue,
        sum(total_amount) filter (where status = 'CANCELLED') as cancelled_amount
    from gold.fact_orders
    group by all
), invoiced as (
    select month_of(sale_date) as month, sum(sale_amount) as invoiced_amount, count(*) as invoices
    from gold.fact_sales
    group by all
)
select
    coalesce(o.month, i.month) as month,
    coalesce(o.orders, 0) as orders,
    coalesce(o.units, 0)::bigint as units,
    coalesce(o.buyers, 0) as buyers,
    money(o.booked_amount) as booked_amount,
    money(o.revenue) as revenue,
    money(o.cancelled_amount) as cancelled_amount,
    money(i.invoiced_amount) as invoiced_amount,
    coalesce(i.invoices, 0) as invoices
from ordered as o
full join invoiced as i on i.month = o.month
