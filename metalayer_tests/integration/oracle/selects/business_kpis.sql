with months as (
    select month_of(order_date) as month from gold.fact_orders
    union select month_of(sale_date) from gold.fact_sales
    union select month_of(valid_from) from gold.dim_customer
), ordered as (
    select
        month_of(order_date) as month,
        sum(total_amount) as booked_amount,
        sum(total_amount) filter (where status = 'COMPLETED') as revenue,
        count(*) as orders,
        count(*) filter (where status = 'COMPLETED') as completed,
        count(*) filter (where status = 'CANCELLED') as cancelled,
        sum(quantity) as units,
        count(distinct customer_id) as buyers
    from gold.fact_orders
    group by all
), invoiced as (
    select month_of(sale_date) as month, sum(sale_amount) as invoiced_amount
    from gold.fact_sales
    group by all
), bought as (
    select distinct customer_id, month_of(order_date) as month
    from gold.fact_orders
    where status <> 'CANCELLED'
), came_back as (
    select
        month,
        count(*) as kept_buyers,
        count(*) filter (where month > first_month) as repeat_buyers
    from (select *, min(month) over (partition by customer_id) as first_month from bought)
    group by month
), newcomers as (
    select month, count(*) as new_customers
    from (
        select customer_id, month_of(min(valid_from)) as month
        from gold.dim_customer
        group by customer_id
    )
    group by month
), active as (
    select month, count(distinct customer_id) as active_customers
    from gold.customer_360
    where orders_in_month > 0
    group by month
), side_by_side as (
    select
        m.month,
        coalesce(o.revenue, 0) as revenue,
        coalesce(o.booked_amount, 0) as booked_amount,
        coalesce(i.invoiced_amount, 0) as invoiced_amount,
        coalesce(o.orders, 0) as orders,
        coalesce(o.units, 0) as units,
        coalesce(o.buyers, 0) as buyers,
        cents_each(coalesce(o.revenue, 0), coalesce(o.completed, 0)) as order_cents,
        ten_thousandths(coalesce(o.cancelled, 0), coalesce(o.orders, 0)) as cancelled_parts,
        coalesce(n.new_customers, 0) as new_customers,
        coalesce(a.active_customers, 0) as active_customers,
        ten_thousandths(coalesce(r.repeat_buyers, 0), coalesce(r.kept_buyers, 0)) as repeat_parts
    from months as m
    left join ordered as o on o.month = m.month
    left join invoiced as i on i.month = m.month
    left join came_back as r on r.month = m.month
    left join newcomers as n on n.month = m.month
    left join active as a on a.month = m.month
)
select month, k.kpi, k.value, k.unit
from side_by_side,
lateral (
    values
        ('revenue', exact(revenue), 'currency'),
        ('booked_amount', exact(booked_amount), 'currency'),
        ('invoiced_amount', exact(invoiced_amount), 'currency'),
        ('orders', exact(orders), 'count'),
        ('units', exact(units), 'count'),
        ('buyers', exact(buyers), 'count'),
        ('average_order_value', exact(order_cents::decimal(20, 0) * 0.01), 'currency'),
        ('cancellation_rate', exact(cancelled_parts::decimal(20, 0) * 0.0001), 'ratio'),
        ('new_customers', exact(new_customers), 'count'),
        ('active_customers', exact(active_customers), 'count'),
        ('repeat_rate', exact(repeat_parts::decimal(20, 0) * 0.0001), 'ratio')
) as k (kpi, value, unit)
