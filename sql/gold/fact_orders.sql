-- gold.fact_orders: each order with the customer version of its day and its product.
-- grain: order_id
-- Of the versions of a customer only the last of a day can be the one of an order, and only those of
-- customers who ordered in the window are looked at.
with orders as (
    select *
    from silver.orders
    where order_date >= :start and order_date < :end
),

buyers as (
    select distinct customer_id
    from silver.orders
    where order_date >= :start and order_date < :end
),

versions as (
    select
        customer_key,
        customer_id,
        cast(valid_from as date) as first_day,
        cast(lead(valid_from) over (partition by customer_id order by valid_from) as date) as next_day
    from gold.dim_customer
    where valid_from < :end and customer_id in (select buyers.customer_id from buyers)
),

last_versions as (
    select *
    from versions
    where next_day is null or next_day > first_day
),

products as (
    select
        product_key,
        product_code
    from gold.dim_product
    where first_seen_on < :end and product_key <> 0
)

select
    orders.order_id,
    orders.order_date,
    cast(to_char(orders.order_date, 'YYYYMMDD') as bigint) as date_key,
    coalesce(last_versions.customer_key, 0) as customer_key,
    coalesce(products.product_key, 0) as product_key,
    orders.customer_id,
    orders.status,
    orders.quantity,
    orders.unit_price,
    orders.total_amount
from orders
left join last_versions
    on
        orders.customer_id = last_versions.customer_id
        and orders.order_date >= last_versions.first_day
        and (orders.order_date < last_versions.next_day or last_versions.next_day is null)
left join products
    on orders.product_code = products.product_code
