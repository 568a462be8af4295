select
    order_date,
    count(*) as orders,
    sum(quantity)::bigint as units,
    count(distinct customer_id) as buyers,
    money(sum(total_amount)) as booked_amount,
    money(sum(total_amount) filter (where status = 'COMPLETED')) as revenue,
    money(sum(total_amount) filter (where status = 'CANCELLED')) as cancelled_amount
from gold.fact_orders
group by order_date
