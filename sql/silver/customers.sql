-- silver.customers: each change of a customer as delivered, typed and standardised.
-- grain: customer_id, updated_at
-- Blank texts are NULL. What is trimmed is what the typed columns tolerate: space, tab, line ends, NBSP.
-- A phone is kept as E.164 or not at all; ten digits, or eleven from 1, are taken for North American.
with delivered as (
    select *
    from bronze.customers
    where month >= :start and month < :end and _is_latest
),

cleaned as (
    select
        customer_id,
        nullif(trim(both E' \t\r\n\u00A0' from first_name), '') as first_name,
        nullif(trim(both E' \t\r\n\u00A0' from last_name), '') as last_name,
        nullif(trim(both E' \t\r\n\u00A0' from email), '') as email,
        nullif(trim(both E' \t\r\n\u00A0' from phone), '') as phone,
        nullif(trim(both E' \t\r\n\u00A0' from city), '') as city,
        nullif(trim(both E' \t\r\n\u00A0' from state), '') as state,
        nullif(trim(both E' \t\r\n\u00A0' from zip), '') as zip,
        dob,
        created_at,
        updated_at,
        _delivery_id,
        _line
    from delivered
)

select
    try_cast(customer_id as bigint) as customer_id,
    first_name,
    last_name,
    lower(email) as email,
    try_phone(phone) as phone,
    case when phone is not null then try_phone(phone) is not null end as is_phone_valid,
    city,
    upper(state) as state,
    zip,
    try_cast(dob as date) as dob,
    try_cast(created_at as timestamp) as created_at,
    try_cast(updated_at as timestamp) as updated_at,
    _delivery_id,
    _line
from cleaned
