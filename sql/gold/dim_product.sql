-- gold.dim_product: each product on the day it was first ordered or invoiced.
-- grain: product_key
-- No system delivers a product list. What does not look like a code is no product, and its rows get member 0.
with sold as (
    select
        product_code,
        order_date as sold_on
    from silver.orders
    where order_date >= :start and order_date < :end
    union all
    select
        product_code,
        sale_date as sold_on
    from silver.erp_sales
    where sale_date >= :start and sale_date < :end
),

products as (
    select
        product_code,
        min(sold_on) as first_seen_on
    from sold
    group by product_code
)

select
    surrogate_key(product_code) as product_key,
    product_code,
    cast(substring(product_code from 2) as bigint) as product_id,
    first_seen_on
from products
where
    product_code ~ '^P[0-9]{5}$'
    and not exists (
        select 1 from silver.orders
        where orders.product_code = products.product_code and orders.order_date < :start
    )
    and not exists (
        select 1 from silver.erp_sales
        where erp_sales.product_code = products.product_code and erp_sales.sale_date < :start
    )
