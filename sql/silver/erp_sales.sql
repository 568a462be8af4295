-- silver.erp_sales: each invoiced sale as last delivered, typed.
-- grain: sales_id
-- Sales number the products that orders name by code: 226 is P00226. A number past five digits has no code.
with delivered as (
    select *
    from bronze.erp_sales
    where month >= :start and month < :end and _is_latest
    -- A fence: without it PostgreSQL looks for null tokens again at every mention of the product below.
    offset 0 -- noqa: AM09
)

select
    try_cast(sales_id as bigint) as sales_id,
    try_cast(product_id as bigint) as product_id,
    case
        when try_cast(product_id as bigint) between 1 and 99999
            then 'P' || lpad(cast(try_cast(product_id as bigint) as text), 5, '0')
    end as product_code,
    try_cast(customer_id as bigint) as customer_id,
    try_cast(quantity as bigint) as quantity,
    try_cast(sale_date as date) as sale_date,
    try_cast(sale_amount as numeric(18, 2)) as sale_amount,
    _delivery_id,
    _line
from delivered
