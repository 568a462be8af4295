-- gold.customer_cohorts: each month's buyers by the month of their first order.
-- grain: cohort_month, activity_month
-- Cancelled orders count nowhere. When a buyer first ordered is taken from the table that defines it;
-- whoever that lacks has no cohort, which the contract refuses.
with activity as (
    select
        customer_id,
        cast(date_trunc('month', order_date) as date) as activity_month,
        count(*) as orders,
        sum(total_amount) filter (where status = 'COMPLETED') as revenue
    from gold.fact_orders
    where order_date >= :start and order_date < :end and status <> 'CANCELLED'
    group by customer_id, cast(date_trunc('month', order_date) as date)
),

cohorts as (
    select
        customer_id,
        month as activity_month,
        cast(date_trunc('month', first_order_on) as date) as cohort_month
    from gold.customer_360
    where month >= :start and month < :end
),

cohort_activity as (
    select
        cohorts.cohort_month,
        activity.activity_month,
        count(*) as buyers,
        sum(activity.orders) as orders,
        sum(activity.revenue) as revenue
    from activity
    left join cohorts
        on
            activity.customer_id = cohorts.customer_id
            and activity.activity_month = cohorts.activity_month
    group by cohorts.cohort_month, activity.activity_month
)

select
    cohort_month,
    activity_month,
    cast(
        12 * (extract(year from activity_month) - extract(year from cohort_month))
        + extract(month from activity_month) - extract(month from cohort_month) as bigint
    ) as months_since_first,
    buyers,
    cast(orders as bigint) as orders,
    coalesce(revenue, 0) as revenue
from cohort_activity
