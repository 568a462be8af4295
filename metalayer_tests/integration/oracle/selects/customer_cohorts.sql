with bought as (
    select customer_id, order_date, status, total_amount
    from gold.fact_orders
    where status <> 'CANCELLED'
), firsts as (
    select customer_id, month_of(min(order_date)) as cohort_month from bought group by customer_id
)
select
    f.cohort_month,
    month_of(b.order_date) as activity_month,
    datediff('month', f.cohort_month, month_of(b.order_date)) as months_since_first,
    count(distinct b.customer_id) as buyers,
    count(*) as orders,
    money(sum(b.total_amount) filter (where b.status = 'COMPLETED')) as revenue
from bought as b
join firsts as f on f.customer_id = b.customer_id
group by all
