-- MetaLayer's own tables: the ledger of deliveries and the versions of published months.
-- Idempotent: run at the start of every command that may write.

create schema if not exists meta;
create schema if not exists months;
comment on schema meta is 'The ledger of deliveries, the quarantine, and the versions of every published month';
comment on schema months is 'One table for each version of each month; the attached ones are what readers see';

create table if not exists meta.installed (fingerprint text not null);
alter table meta.installed add column if not exists scripts text not null default '';
comment on table meta.installed is 'What the schema was last created from; another value means it is out of date';
comment on column meta.installed.scripts is 'The part of it that is MetaLayer''s own: this schema and the SQL functions';

create table if not exists meta.tables (
    table_name text primary key,
    layer text not null,
    description text not null,
    owner text not null,
    fresh_within interval not null,
    position integer not null,
    key_columns text not null default '',
    open_columns text not null default '',
    due_day integer,
    due_hour integer,
    made_from text not null default '',
    has_personal boolean not null default true,
    source text
);
alter table meta.tables
    add column if not exists key_columns text not null default '',
    add column if not exists open_columns text not null default '',
    add column if not exists due_day integer,
    add column if not exists due_hour integer,
    add column if not exists made_from text not null default '',
    add column if not exists has_personal boolean not null default true,
    add column if not exists source text;
comment on table meta.tables is 'Facts of each table from its contract, for those who ask the warehouse only';
comment on column meta.tables.fresh_within is 'How old the newest publish may be';
comment on column meta.tables.position is 'Upstream tables come before downstream ones';
comment on column meta.tables.source is 'The landed files that a table is made from directly: system and export';
comment on column meta.tables.key_columns is 'The columns that identify a row, with commas between';
comment on column meta.tables.open_columns is 'The columns whose values are not personal, and may be shown';
comment on column meta.tables.due_day is 'Day of the next month by which a month is to be there; none if it need not come';
comment on column meta.tables.due_hour is 'Hour of that day, UTC';
comment on column meta.tables.has_personal is 'Whether any of its columns is personal: then its rejected rows are masked';
comment on column meta.tables.made_from is 'The tables it is made from, near or far, with commas between';

-- Made once, of what the server has for making keys: no two warehouses have the same.
create table if not exists meta.secret (pseudonym_key bytea not null);
create unique index if not exists secret_is_one on meta.secret ((true));
insert into meta.secret (pseudonym_key)
select sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
where not exists (select from meta.secret);
comment on table meta.secret is 'Key of the pseudonyms that stand for names; whoever reads it can look names up';

create table if not exists meta.keys (
    key_id text primary key,
    state text not null check (state in ('current', 'next', 'earlier')),
    since timestamptz not null default now()
);
create unique index if not exists keys_are_one_of_a_state on meta.keys (state) where state <> 'earlier';
comment on table meta.keys is 'Which keys encrypted columns are sealed with; the keys themselves are never here';
comment on column meta.keys.state is 'current: it seals; next: values are being sealed with it anew; earlier: it sealed once';

create table if not exists meta.erased (
    kind text not null,
    token text not null,
    erased_at timestamptz not null default now(),
    primary key (kind, token)
);
comment on table meta.erased is 'Persons who were erased, as salted hashes of their numbers; the salt is kept in METALAYER_HOME';

create table if not exists meta.erased_salt (fingerprint text not null);
create unique index if not exists erased_salt_is_one on meta.erased_salt ((true));
comment on table meta.erased_salt is 'Which salt the hashes of persons were made with; the salt itself is kept in METALAYER_HOME';

create table if not exists meta.holds (
    kind text not null,
    token text not null,
    reason text not null,
    held_since timestamptz not null default now(),
    primary key (kind, token)
);
comment on table meta.holds is 'Persons who must not be erased, as salted hashes of their numbers, and why';

-- Its subquery in a masking view runs once a statement, with the owner's rights, as `current_user` of the asking.
create or replace view meta.reader as
select
    coalesce(current_setting('metalayer.masked', true), '') <> 'on'
    and (
        pg_has_role(
            current_user, (select relowner from pg_catalog.pg_class where oid = 'meta.secret'::regclass), 'usage'
        )
        or exists (
            select from pg_catalog.pg_roles as r
            where r.rolname in ('metalayer_steward', 'metalayer_pipeline')
                and pg_has_role(current_user, r.oid, 'usage')
        )
    ) as sees_plain,
    encode(s.pseudonym_key, 'hex') as pseudonym_key
from meta.secret as s;
comment on view meta.reader is 'Whether who asks sees personal values: the owner, and members of metalayer_steward and metalayer_pipeline';

create table if not exists meta.views (name text primary key, body text not null);
comment on table meta.views is 'The views beside the tables, as they were created';

create table if not exists meta.evolved_columns (
    position bigint generated always as identity,
    table_name text not null,
    column_name text not null,
    file text not null,
    added_at timestamptz not null default now(),
    primary key (table_name, column_name)
);
comment on table meta.evolved_columns is 'Columns of bronze tables that a file brought and no contract declares';
comment on column meta.evolved_columns.file is 'The first file that had it';

create sequence if not exists meta.leaf_number;

create table if not exists meta.deliveries (
    delivery_id bigint generated always as identity primary key,
    source text not null,
    file text not null,
    sha256 text not null,
    size bigint not null,
    mtime_ns bigint not null,
    status text not null,
    reason text,
    related_delivery_id bigint references meta.deliveries,
    fallback_month date not null,
    shape text not null,
    rows_read bigint not null default 0,
    rows_rejected bigint not null default 0,
    extra_columns text[] not null default '{}',
    missing_columns text[] not null default '{}',
    drift text[] not null default '{}',
    is_repair boolean not null default false,
    rows_repaired bigint not null default 0,
    rows_erased bigint not null default 0,
    registered_at timestamptz not null default now()
);
-- A warehouse made by an earlier release gets here what has been added since.
alter table meta.deliveries
    add column if not exists drift text[] not null default '{}',
    add column if not exists is_repair boolean not null default false,
    add column if not exists rows_repaired bigint not null default 0,
    add column if not exists rows_erased bigint not null default 0,
    drop constraint if exists deliveries_status_check,
    add constraint deliveries_status_check
        check (status in ('loaded', 'duplicate', 'superseded', 'rejected', 'withdrawn'));
create index if not exists deliveries_by_file on meta.deliveries (source, file);
create index if not exists deliveries_by_content on meta.deliveries (source, sha256);
comment on table meta.deliveries is 'Each version of each landed file, once';
comment on column meta.deliveries.related_delivery_id is 'The delivery this one duplicates, or that superseded it';
comment on column meta.deliveries.fallback_month is 'Month of rows that carry no date themselves';
comment on column meta.deliveries.drift is 'What changed in the columns since the delivery before, in sentences';
comment on column meta.deliveries.is_repair is 'Its rows mend quarantined rows of other deliveries, which they name, and count in their place';
comment on column meta.deliveries.rows_erased is 'Records of erased persons that were taken out of the file, or made anonymous in it';
comment on column meta.deliveries.rows_repaired is 'Records that could not be read and that a repair has replaced';
comment on column meta.deliveries.shape is 'Fingerprint of the contract the file was parsed with';

create table if not exists meta.delivery_months (
    delivery_id bigint not null references meta.deliveries on delete cascade,
    month date not null,
    rows bigint not null,
    is_replaced boolean not null default false,
    rows_superseded bigint not null default 0,
    superseded_fingerprint bigint not null default 0,
    primary key (delivery_id, month)
);
comment on table meta.delivery_months is 'How many good rows each delivery has in each month, and how many count no longer';
comment on column meta.delivery_months.is_replaced is 'A later snapshot replaces all of these rows';

create table if not exists meta.superseded_rows (
    delivery_id bigint not null references meta.deliveries on delete cascade,
    line bigint not null,
    month date not null,
    primary key (delivery_id, line)
);
comment on table meta.superseded_rows is 'Rows whose key a later row delivers again';

create table if not exists meta.repaired_rows (
    delivery_id bigint not null references meta.deliveries on delete cascade,
    line bigint not null,
    by_delivery_id bigint not null references meta.deliveries on delete cascade,
    by_line bigint not null,
    primary key (delivery_id, line)
);
comment on table meta.repaired_rows is 'Rows that a live repair replaces, and the row that stands in their place';

create table if not exists meta.quarantine (
    table_name text not null,
    month date,
    delivery_id bigint references meta.deliveries on delete cascade,
    line bigint,
    column_name text,
    rule text not null,
    value text,
    violations jsonb not null default '[]',
    raw text,
    quarantined_at timestamptz not null default now()
);
create index if not exists quarantine_by_month on meta.quarantine (table_name, month);
create index if not exists quarantine_by_delivery on meta.quarantine (delivery_id);
comment on table meta.quarantine is 'Rows that break a contract: which rule, which value, which line of which file';

create table if not exists meta.past_quarantine (like meta.quarantine, version integer not null);
create index if not exists past_quarantine_by_month on meta.past_quarantine (table_name, month, version);
comment on table meta.past_quarantine is 'The quarantine of earlier versions of a month, for as long as those are kept';

create table if not exists meta.versions (
    table_name text not null,
    month date not null,
    version integer not null,
    is_current boolean not null,
    leaf text not null,
    data_version text not null,
    code_version text not null,
    inputs jsonb not null,
    rows_read bigint not null,
    rows bigint not null,
    rows_quarantined bigint not null,
    rows_superseded bigint not null,
    run_id text,
    seconds double precision not null,
    published_at timestamptz not null default clock_timestamp(),
    replaced_at timestamptz,
    restores integer,
    is_checked boolean not null default false,
    primary key (table_name, month, version)
);
alter table meta.versions
    add column if not exists replaced_at timestamptz,
    add column if not exists restores integer,
    add column if not exists is_checked boolean not null default false;
create unique index if not exists versions_current on meta.versions (table_name, month) where is_current;
comment on table meta.versions is 'Every published state of every month; readers see the current ones';
comment on column meta.versions.data_version is 'Fingerprint of the rows; equal contents have equal versions';
comment on column meta.versions.replaced_at is 'When a later version took its place';
comment on column meta.versions.restores is 'The earlier version that a rollback brought back as this one';
comment on column meta.versions.is_checked is 'Whether the blocking checks of the table have passed since it was published';
comment on column meta.versions.inputs is 'What it was made from: the fingerprint of each upstream table, or of each delivery';

create table if not exists meta.changed_keys (
    table_name text not null,
    month date not null,
    version integer not null,
    keys text[] not null,
    primary key (table_name, month, version),
    foreign key (table_name, month, version) references meta.versions on delete cascade
);
comment on table meta.changed_keys is 'Whose rows a version changed, for tables that are followed by key; none are noted where there are too many';

create table if not exists meta.profiles (
    table_name text not null,
    month date not null,
    version integer not null,
    published_at timestamptz not null,
    rows_read bigint not null,
    rows bigint not null,
    rows_quarantined bigint not null,
    rows_superseded bigint not null,
    columns jsonb not null,
    days jsonb not null default '{}',
    profiled_at timestamptz not null default clock_timestamp(),
    primary key (table_name, month, version)
);
comment on table meta.profiles is 'What each published state of a month looked like: kept for longer than the rows themselves';
comment on column meta.profiles.columns is
'Column -> nulls, distinct, min, max, mean, sum, top (value and rows), unresolved (references); no value of a personal one';
comment on column meta.profiles.days is 'Day of the month column -> rows, and column -> nulls; empty where rows have no day of their own';

create table if not exists meta.anomalies (
    anomaly_id bigint generated always as identity primary key,
    table_name text not null,
    measure text not null check (measure in ('volume', 'nulls', 'distribution', 'freshness')),
    column_name text not null default '',
    period text not null,
    observed double precision not null,
    low double precision not null,
    high double precision not null,
    score double precision not null,
    series jsonb not null default '[]',
    found_at timestamptz not null default clock_timestamp(),
    state text not null default 'open' check (state in ('open', 'expected', 'over')),
    ended_at timestamptz,
    why text not null default '',
    unique (table_name, measure, column_name, period)
);
comment on table meta.anomalies is 'What was unusual in a published day or month, and whether it still is or was expected';
comment on column meta.anomalies.low is 'Between this and high it usually is; score is the distance in usual deviations';

create table if not exists meta.built_from (
    table_name text not null,
    month date not null,
    version integer not null,
    inputs jsonb not null,
    primary key (table_name, month, version),
    foreign key (table_name, month, version) references meta.versions on delete cascade
);
comment on table meta.built_from is 'Which version of each month of its inputs a month of a following table was made from';

create table if not exists meta.retention (
    source text primary key,
    expired_before date not null,
    held_months date[] not null default '{}',
    since timestamptz not null default now()
);
comment on table meta.retention is 'Before which month rows of a source have expired: they are taken out of files that have them';
comment on column meta.retention.held_months is 'Earlier months that stay all the same: they have rows of somebody on legal hold';

create table if not exists meta.expired_months (
    table_name text not null,
    month date not null,
    rows bigint not null,
    expired_at timestamptz not null default now(),
    primary key (table_name, month)
);
comment on table meta.expired_months is 'Months whose rows were kept as long as their contract says. What was made from them of the same month stays as it is';

create table if not exists meta.failed_months (
    table_name text not null,
    month date not null,
    made_from text not null,
    problem text not null,
    failed_at timestamptz not null default now(),
    primary key (table_name, month)
);
comment on table meta.failed_months is 'Months whose last audit failed, and the fingerprint of what they were made from then: nobody need try the same again';

create table if not exists meta.failed_checks (
    table_name text primary key,
    versions text not null,
    problem text not null,
    failed_at timestamptz not null default now()
);
comment on table meta.failed_checks is 'Tables whose blocking checks failed, and the published versions that were asked about';

create or replace view meta.ledger as
with landed as (
    select delivery_id, sum(rows) as rows, sum(rows_superseded) as superseded,
        array_agg(to_char(month, 'YYYY-MM') order by month) as months
    from meta.delivery_months
    group by delivery_id
),
quarantined as (
    -- Landed rows that a typed table refuses; those that could not be read are counted at registration.
    -- Until the next build they may be among those that a later delivery has replaced meanwhile.
    select q.delivery_id, count(*) as rows
    from meta.quarantine as q
    left join meta.superseded_rows as s on s.delivery_id = q.delivery_id and s.line = q.line
    left join meta.delivery_months as m
        on m.delivery_id = q.delivery_id and m.month = q.month and m.is_replaced
    where q.table_name like 'silver.%' and s.line is null and m.month is null
    group by q.delivery_id
)
select
    d.delivery_id,
    d.file,
    d.source,
    d.sha256,
    d.status,
    d.rows_read,
    case when d.status = 'loaded'
        then coalesce(l.rows, 0) - coalesce(l.superseded, 0) - coalesce(q.rows, 0) else 0
    end::bigint as rows_loaded,
    -- A record that a repair stands for counts as superseded, as a row would.
    (d.rows_rejected + case when d.status = 'loaded' then coalesce(q.rows, 0) - d.rows_repaired else 0 end)::bigint
        as rows_rejected,
    (case when d.status = 'loaded' then coalesce(l.superseded, 0) + d.rows_repaired else coalesce(l.rows, 0) end)::bigint
        as rows_superseded,
    coalesce(l.months, '{}') as months,
    d.reason,
    d.extra_columns,
    d.missing_columns,
    d.registered_at,
    d.drift,
    d.rows_erased
from meta.deliveries as d
left join landed as l using (delivery_id)
left join quarantined as q using (delivery_id);
comment on view meta.ledger is 'Each delivery and what became of its rows: read = loaded + rejected + superseded';
