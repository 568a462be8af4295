select
    o.order_id,
    o.order_date,
    as_date_key(o.order_date) as date_key,
    coalesce(c.customer_key, 0) as customer_key,
    coalesce(p.product_key, 0) as product_key,
    o.customer_id, o.status, o.quantity, o.unit_price, o.total_amount
from (select *, order_date::timestamp + interval 1 day as next_day from silver.orders) as o
asof left join gold.dim_customer as c
    on c.customer_id = o.customer_id and c.valid_from < o.next_day
left join gold.dim_product as p on p.product_code = o.product_code
