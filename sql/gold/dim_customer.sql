-- gold.dim_customer: the versions of customers that began in the months.
-- grain: customer_key (customer_id, valid_from)
-- What happens to a customer are changes (silver.customers) and snapshots (silver.crm_customers, from the
-- first instant of their month). After each, the customer is the latest change beside the latest snapshot; a
-- version begins where that differs from what was known before. Of the time before the window only the latest
-- change and snapshot matter.
with touched as (
    select customer_id
    from silver.customers
    where updated_at >= :start and updated_at < :end
    union
    select customer_id
    from silver.crm_customers
    where month >= :start and month < :end
),

last_changes as (
    select
        customer_id,
        max(updated_at) as updated_at
    from silver.customers
    where updated_at < :start and customer_id in (select touched.customer_id from touched)
    group by customer_id
),

last_snapshots as (
    select
        customer_id,
        max(month) as month
    from silver.crm_customers
    where month < :start
    group by customer_id
),

changes as (
    select
        customer_id,
        updated_at,
        nullif(concat_ws(' ', first_name, last_name), '') as customer_name,
        email,
        phone,
        city,
        state,
        zip,
        dob,
        created_at
    from silver.customers
    where updated_at >= :start and updated_at < :end
    union all
    select
        earlier.customer_id,
        earlier.updated_at,
        nullif(concat_ws(' ', earlier.first_name, earlier.last_name), '') as customer_name,
        earlier.email,
        earlier.phone,
        earlier.city,
        earlier.state,
        earlier.zip,
        earlier.dob,
        earlier.created_at
    from silver.customers as earlier
    inner join last_changes
        on earlier.customer_id = last_changes.customer_id and earlier.updated_at = last_changes.updated_at
    where earlier.updated_at < :start
),

snapshots as (
    select
        customer_id,
        month,
        customer_name,
        email,
        region
    from silver.crm_customers
    where month >= :start and month < :end
    union all
    select
        earlier.customer_id,
        earlier.month,
        earlier.customer_name,
        earlier.email,
        earlier.region
    from silver.crm_customers as earlier
    inner join last_snapshots
        on earlier.customer_id = last_snapshots.customer_id and earlier.month = last_snapshots.month
    where earlier.month < :start
),

-- Most snapshots repeat the one before; only those with news go on.
compared_snapshots as (
    select
        *,
        (customer_name, email, region) as said,
        lag((customer_name, email, region)) over (partition by customer_id order by month) as said_before,
        row_number() over (partition by customer_id order by month) as number
    from snapshots
),

news as (
    select
        customer_id,
        cast(month as timestamp) as known_from,
        cast(lead(month) over (partition by customer_id order by month) as timestamp) as known_to,
        customer_name,
        email,
        region
    from compared_snapshots
    where number = 1 or said is distinct from said_before
),

last_changes_at_news as (
    select
        news.customer_id,
        news.known_from,
        max(changes.updated_at) as updated_at
    from news
    inner join changes
        on news.customer_id = changes.customer_id and news.known_from >= changes.updated_at
    group by news.customer_id, news.known_from
),

-- Both halves hold an event of which change and snapshot are at the same instant; they then say the same.
events as (
    select
        changes.customer_id,
        changes.updated_at as happened_at,
        changes.customer_name as changed_name,
        changes.email as changed_email,
        changes.phone,
        changes.city,
        changes.state,
        changes.zip,
        changes.dob,
        changes.created_at,
        news.customer_name as snapshot_name,
        news.email as snapshot_email,
        news.region
    from changes
    left join news
        on
            changes.customer_id = news.customer_id
            and changes.updated_at >= news.known_from
            and (changes.updated_at < news.known_to or news.known_to is null)
    union all
    select
        news.customer_id,
        news.known_from as happened_at,
        changes.customer_name as changed_name,
        changes.email as changed_email,
        changes.phone,
        changes.city,
        changes.state,
        changes.zip,
        changes.dob,
        changes.created_at,
        news.customer_name as snapshot_name,
        news.email as snapshot_email,
        news.region
    from news
    left join last_changes_at_news
        on
            news.customer_id = last_changes_at_news.customer_id
            and news.known_from = last_changes_at_news.known_from
    left join changes
        on
            last_changes_at_news.customer_id = changes.customer_id
            and last_changes_at_news.updated_at = changes.updated_at
),

unified as (
    select
        customer_id,
        happened_at,
        coalesce(changed_name, snapshot_name) as customer_name,
        coalesce(changed_email, snapshot_email) as email,
        phone,
        city,
        state,
        zip,
        dob,
        created_at,
        region,
        case
            when changed_name is not null then 'customers'
            when snapshot_name is not null then 'crm_customers'
        end as name_source,
        case
            when changed_email is not null then 'customers'
            when snapshot_email is not null then 'crm_customers'
        end as email_source,
        nullif(
            concat_ws(
                ',',
                case when changed_email <> snapshot_email then 'email' end,
                case when lower(changed_name) <> lower(snapshot_name) then 'name' end
            ),
            ''
        ) as disagreements
    from events
),

described as (
    select
        *,
        (
            customer_name, email, phone, city, state, zip, dob, created_at, region,
            name_source, email_source, disagreements
        ) as attributes
    from unified
),

compared as (
    select
        *,
        lag(attributes) over (partition by customer_id order by happened_at) as attributes_before,
        row_number() over (partition by customer_id order by happened_at) as number
    from described
)

select
    surrogate_key(
        cast(customer_id as text), to_char(happened_at, 'YYYY-MM-DD HH24:MI:SS.US')
    ) as customer_key,
    customer_id,
    happened_at as valid_from,
    customer_name,
    email,
    phone,
    city,
    state,
    zip,
    dob,
    created_at,
    region,
    name_source,
    email_source,
    disagreements
from compared
where happened_at >= :start and (number = 1 or attributes is distinct from attributes_before)
