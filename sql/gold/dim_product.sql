-- gold.dim_product: each product on the day it was first ordered or invoiced.
-- grain: product_key
-- No system delivers a product list. What does not look like a code is no product, and its rows get member 0.
with ordered as (
    select
        product_code,
        min(order_date) as seen_on
    from silver.orders
    where order_date < :end and product_code ~ '^P[0-9]{5}$'
    group by product_code
),

invoiced as (
    select
        product_code,
        min(sale_date) as seen_on
    from silver.erp_sales
    where sale_date < :end and product_code ~ '^P[0-9]{5}$'
    group by product_code
),

seen as (
    select * from ordered
    union all
    select * from invoiced
),

products as (
    select
        product_code,
        min(seen_on) as first_seen_on
    from seen
    group by product_code
)

select
    surrogate_key(product_code) as product_key,
    product_code,
    cast(substring(product_code from 2) as bigint) as product_id,
    first_seen_on
from products
where first_seen_on >= :start
