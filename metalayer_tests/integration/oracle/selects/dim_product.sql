select
    key_of(product_code) as product_key,
    product_code,
    substr(product_code, 2)::bigint as product_id,
    min(seen_on) as first_seen_on
from (
    select product_code, order_date as seen_on from silver.orders
    union all
    select product_code, sale_date from silver.erp_sales
)
where regexp_full_match(product_code, 'P[0-9]{5}')
group by product_code
