-- silver.crm_customers: each customer of a month's newest snapshot, typed and standardised.
-- grain: customer_id, month
-- The regions are typed by hand; what is none of the five is kept, so that nothing said is lost.
with delivered as (
    select *
    from bronze.crm_customers
    where month >= :start and month < :end and _is_latest
),

cleaned as (
    select
        customer_id,
        nullif(trim(both E' \t\r\n\u00A0' from customer_name), '') as customer_name,
        nullif(trim(both E' \t\r\n\u00A0' from email), '') as email,
        nullif(trim(both E' \t\r\n\u00A0' from region), '') as region,
        month,
        _delivery_id,
        _line
    from delivered
)

select
    try_cast(customer_id as bigint) as customer_id,
    customer_name,
    lower(email) as email,
    case upper(region)
        when 'N' then 'North'
        when 'NE' then 'Northeast'
        when 'E' then 'East'
        when 'SE' then 'Southeast'
        when 'S' then 'South'
        when 'SW' then 'Southwest'
        when 'W' then 'West'
        when 'NW' then 'Northwest'
        when 'MW' then 'Midwest'
        when 'C' then 'Central'
        when 'CENTER' then 'Central'
        when 'CENTRE' then 'Central'
        else initcap(region)
    end as region,
    month,
    _delivery_id,
    _line
from cleaned
