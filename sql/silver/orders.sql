-- silver.orders: each order as last delivered, typed and standardised.
-- grain: order_id
-- Which delivery of an order counts is settled across months when it is registered, so a moved order leaves
-- its old month.
-- The ERP's branches name a finished order PAID, CLOSED or COMPLETE; here it is COMPLETED.
with delivered as (
    select *
    from bronze.orders
    where month >= :start and month < :end and _is_latest
),

cleaned as (
    select
        order_id,
        customer_id,
        nullif(trim(both E' \t\r\n\u00A0' from product_code), '') as product_code,
        order_date,
        quantity,
        unit_price,
        total_amount,
        nullif(upper(trim(both E' \t\r\n\u00A0' from status)), '') as status,
        _delivery_id,
        _line
    from delivered
)

select
    try_cast(order_id as bigint) as order_id,
    try_cast(customer_id as bigint) as customer_id,
    upper(product_code) as product_code,
    try_cast(order_date as date) as order_date,
    try_cast(quantity as bigint) as quantity,
    try_cast(unit_price as numeric(18, 4)) as unit_price,
    try_cast(total_amount as numeric(18, 2)) as total_amount,
    case when status in ('PAID', 'CLOSED', 'COMPLETE') then 'COMPLETED' else status end as status,
    _delivery_id,
    _line
from cleaned
