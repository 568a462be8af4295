with news as (
    select customer_id, month_of(valid_from) as month from gold.dim_customer
    union
    select customer_id, month_of(order_date) from gold.fact_orders
    union
    select customer_id, month_of(sale_date) from gold.fact_sales
), history as (
    select
        n.customer_id,
        n.month,
        min(o.order_date) filter (where o.status <> 'CANCELLED') as first_order_on,
        max(o.order_date) filter (where o.status <> 'CANCELLED') as last_order_on,
        count(*) filter (where o.status <> 'CANCELLED') as orders,
        money(sum(o.total_amount) filter (where o.status = 'COMPLETED')) as lifetime_value,
        count(*) filter (where month_of(o.order_date) = n.month) as orders_in_month
    from news as n
    left join gold.fact_orders as o
        on o.customer_id = n.customer_id and o.order_date < after_month(n.month)
    group by all
), invoiced as (
    select customer_id, month_of(sale_date) as month, sum(sale_amount) as amount
    from gold.fact_sales
    group by all
), scored as (
    select
        h.*,
        money(i.amount) as invoiced_in_month,
        (after_month(h.month) - 1) - h.last_order_on as recency_days,
        case when recency_days <= 30 then 5 when recency_days <= 60 then 4
             when recency_days <= 90 then 3 when recency_days <= 180 then 2 else 1 end as r,
        case when orders >= 20 then 5 when orders >= 10 then 4
             when orders >= 5 then 3 when orders >= 2 then 2 else 1 end as f,
        case when lifetime_value >= 10000 then 5 when lifetime_value >= 5000 then 4
             when lifetime_value >= 1000 then 3 when lifetime_value >= 100 then 2 else 1 end as m,
        after_month(h.month)::timestamp as month_end
    from history as h
    left join invoiced as i on i.customer_id = h.customer_id and i.month = h.month
)
select
    s.customer_id, s.month,
    coalesce(c.customer_key, 0) as customer_key,
    c.customer_name, c.email, c.region, c.city, c.state,
    coalesce(c.is_deleted, false) as is_deleted,
    s.first_order_on, s.last_order_on, s.orders, s.lifetime_value,
    s.orders_in_month, s.invoiced_in_month, s.recency_days,
    s.r::bigint as recency_score,
    s.f::bigint as frequency_score,
    s.m::bigint as monetary_score,
    case
        when s.orders = 0 then 'Prospect'
        when s.r >= 4 and s.f >= 4 and s.m >= 4 then 'Champion'
        when s.f >= 3 and s.r >= 3 then 'Loyal'
        when s.orders = 1 and s.r >= 4 then 'New'
        when s.r <= 2 and (s.f >= 3 or s.m >= 4) then 'At risk'
        when s.r = 1 then 'Dormant'
        else 'Active'
    end as segment
from scored as s
asof left join gold.dim_customer as c
    on c.customer_id = s.customer_id and c.valid_from < s.month_end
