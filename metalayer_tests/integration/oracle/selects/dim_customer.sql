with snapshots as (
    select distinct month::timestamp as moment from silver.crm_customers
), members as (
    select customer_id, min(month) as first_listed from silver.crm_customers group by customer_id
), moments as (
    select customer_id, updated_at as moment from silver.customers
    union
    select m.customer_id, s.moment from members as m join snapshots as s
        on s.moment >= m.first_listed
), crm as (
    select *, month::timestamp as moment from silver.crm_customers
), seen as (
    select
        m.customer_id,
        m.moment,
        case when c.first_name is null then c.last_name
             when c.last_name is null then c.first_name
             else c.first_name || ' ' || c.last_name end as master_name,
        c.email as master_email,
        r.customer_name as crm_name,
        r.email as crm_email,
        c.phone, c.city, c.state, c.zip, c.dob, c.created_at,
        r.region,
        coalesce(r.moment < s.moment, false) as is_deleted
    from moments as m
    asof left join silver.customers as c
        on c.customer_id = m.customer_id and c.updated_at <= m.moment
    asof left join crm as r on r.customer_id = m.customer_id and r.moment <= m.moment
    asof left join snapshots as s on s.moment <= m.moment
), told as (
    select
        customer_id,
        moment as valid_from,
        coalesce(master_name, crm_name) as customer_name,
        coalesce(master_email, crm_email) as email,
        phone, city, state, zip, dob, created_at, region,
        case when master_name is not null then 'customers'
             when crm_name is not null then 'crm_customers' end as name_source,
        case when master_email is not null then 'customers'
             when crm_email is not null then 'crm_customers' end as email_source,
        case
            when master_email <> crm_email and lower(master_name) <> lower(crm_name)
                then 'email,name'
            when master_email <> crm_email then 'email'
            when lower(master_name) <> lower(crm_name) then 'name'
        end as disagreements,
        is_deleted
    from seen
), beside as (
    select
        *,
        row_number() over w as nth,
        lag(customer_name) over w as p1, lag(email) over w as p2, lag(phone) over w as p3,
        lag(city) over w as p4, lag(state) over w as p5, lag(zip) over w as p6,
        lag(dob) over w as p7, lag(created_at) over w as p8, lag(region) over w as p9,
        lag(name_source) over w as p10, lag(email_source) over w as p11,
        lag(disagreements) over w as p12, lag(is_deleted) over w as p13
    from told
    window w as (partition by customer_id order by valid_from)
), versions as (
    select * from beside
    where nth = 1
       or customer_name is distinct from p1 or email is distinct from p2
       or phone is distinct from p3 or city is distinct from p4 or state is distinct from p5
       or zip is distinct from p6 or dob is distinct from p7 or created_at is distinct from p8
       or region is distinct from p9 or name_source is distinct from p10
       or email_source is distinct from p11 or disagreements is distinct from p12
       or is_deleted is distinct from p13
)
select
    key_of(customer_id::varchar || chr(31) || strftime(valid_from, '%Y-%m-%d %H:%M:%S.%f'))
        as customer_key,
    customer_id, valid_from, customer_name, email, phone, city, state, zip, dob, created_at,
    region, name_source, email_source, disagreements, is_deleted,
    lead(valid_from) over w as valid_to,
    lead(valid_from) over w is null as is_current
from versions
window w as (partition by customer_id order by valid_from)
