select
    s.sales_id,
    s.sale_date,
    as_date_key(s.sale_date) as date_key,
    coalesce(c.customer_key, 0) as customer_key,
    coalesce(p.product_key, 0) as product_key,
    s.customer_id, s.quantity, s.sale_amount
from (select *, sale_date::timestamp + interval 1 day as next_day from silver.erp_sales) as s
asof left join gold.dim_customer as c
    on c.customer_id = s.customer_id and c.valid_from < s.next_day
left join gold.dim_product as p on p.product_code = s.product_code
