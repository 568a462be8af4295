-- gold.dim_customer: the versions of customers that began in the months.
-- grain: customer_key (customer_id, valid_from)
-- What happens to a customer are changes (silver.customers) and snapshots (silver.crm_customers, from the
-- first instant of their month). After each, the customer is the latest change beside the latest snapshot; a
-- version begins where that differs from what was known before. Whoever was listed and is missing from the next
-- snapshot is deleted from its first instant on, until listed again. Of the time before the window only the
-- latest change and listing matter, and whether a snapshot followed that listing.
with last_listings as (
    select
        customer_id,
        max(month) as month
    from silver.crm_customers
    where month < :start
    group by customer_id
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
    inner join last_listings
        on earlier.customer_id = last_listings.customer_id and earlier.month = last_listings.month
    where earlier.month < :start
),

snapshot_months as (
    select distinct month
    from snapshots
),

-- Months before the window are here as far as they are the last of someone; the newest always is. So a deletion
-- before the window may come out later than it was, yet never inside the window.
followed_months as (
    select
        month,
        lead(month) over (order by month) as next_snapshot
    from snapshot_months
),

listings as (
    select
        snapshots.*,
        followed_months.next_snapshot,
        lead(snapshots.month) over of_customer as next_listing,
        lag(followed_months.next_snapshot) over of_customer as expected_month,
        (snapshots.customer_name, snapshots.email, snapshots.region) as said,
        lag((snapshots.customer_name, snapshots.email, snapshots.region)) over of_customer as said_before,
        row_number() over of_customer as number
    from snapshots
    inner join followed_months
        on snapshots.month = followed_months.month
    window of_customer as (partition by snapshots.customer_id order by snapshots.month)
),

-- Most snapshots repeat the one before; only those with news go on. Being listed no more is news.
told as (
    select
        customer_id,
        month,
        customer_name,
        email,
        region,
        false as is_deleted
    from listings
    where number = 1 or said is distinct from said_before or month > expected_month
    union all
    select
        customer_id,
        next_snapshot as month,
        customer_name,
        email,
        region,
        true as is_deleted
    from listings
    where next_snapshot < next_listing or (next_snapshot is not null and next_listing is null)
),

touched as (
    select customer_id
    from silver.customers
    where updated_at >= :start and updated_at < :end
    union
    select customer_id
    from told
    where month >= :start
),

news as (
    select
        customer_id,
        cast(month as timestamp) as known_from,
        cast(lead(month) over (partition by customer_id order by month) as timestamp) as known_to,
        customer_name,
        email,
        region,
        is_deleted
    from told
),

last_changes as (
    select
        customer_id,
        max(updated_at) as updated_at
    from silver.customers
    where updated_at < :start and customer_id in (select touched.customer_id from touched)
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
        news.region,
        coalesce(news.is_deleted, false) as is_deleted
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
        news.region,
        news.is_deleted
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
        ) as disagreements,
        is_deleted
    from events
),

described as (
    select
        *,
        (
            customer_name, email, phone, city, state, zip, dob, created_at, region,
            name_source, email_source, disagreements, is_deleted
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
    disagreements,
    is_deleted
from compared
where happened_at >= :start and (number = 1 or attributes is distinct from attributes_before)
