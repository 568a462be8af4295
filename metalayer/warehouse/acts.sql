-- The audit log: who did what to the warehouse, when and why. Idempotent, like meta.sql.
-- An act is written in the transaction of what it tells of, so it is there exactly if that is.
-- Acts are chained afterwards (`acts.py`), so that no two transactions wait for each other.

create table if not exists meta.acts (
    act_id bigint generated always as identity primary key,
    at timestamptz not null,
    role text not null,
    os_user text not null,
    action text not null,
    subject text not null,
    details jsonb not null default '{}',
    why text not null default ''
);
comment on table meta.acts is 'The audit log: each act once, never changed. It holds no personal data';
comment on column meta.acts.role is 'The database role that logged in, and the one it had set';
comment on column meta.acts.os_user is 'The account of the operating system, as the program said';
comment on column meta.acts.action is 'build, publish, rollback, repair, withdraw, migrate, ...';
comment on column meta.acts.subject is 'What it was done to: a table and month, a file, a run';
comment on column meta.acts.why is 'The reason that was given';

create table if not exists meta.acts_unsealed (act_id bigint primary key);
comment on table meta.acts_unsealed is 'Acts that wait to be chained';

create table if not exists meta.act_seals (
    position bigint primary key,
    act_id bigint not null unique,
    hash text not null
);
comment on table meta.act_seals is 'The chain: each act''s hash over its content and the hash before';

create table if not exists meta.act_head (
    only_one boolean primary key default true check (only_one),
    position bigint not null,
    hash text not null
);
insert into meta.act_head (position, hash) values (0, '') on conflict do nothing;
comment on table meta.act_head is 'How long the chain is, and how it ends: apart from it, so that a cut end is seen';

-- Who acts is told by the server, not by whoever inserts.
create or replace function meta.stamp_act() returns trigger language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    new.at := clock_timestamp();
    new.role := session_user || case
        when current_setting('role') in ('none', session_user) then ''
        else ' as ' || current_setting('role') end;
    new.os_user := left(coalesce(current_setting('metalayer.os_user', true), ''), 200);
    new.why := left(coalesce(nullif(new.why, ''), current_setting('metalayer.why', true), ''), 1000);
    insert into meta.acts_unsealed (act_id) values (new.act_id);
    return new;
end $$;

create or replace function meta.refuse_change() returns trigger language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    raise exception 'meta.% is append-only: it takes no %', tg_table_name, tg_op
        using errcode = 'insufficient_privilege';
end $$;

create or replace function meta.only_longer() returns trigger language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    if new.position <= old.position then
        raise exception 'meta.act_head only grows' using errcode = 'insufficient_privilege';
    end if;
    return new;
end $$;

create or replace function meta.act_of_version() returns trigger language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into meta.acts (action, subject, details) values (
        case when new.restores is null then 'publish' else 'rollback' end,
        new.table_name || ' ' || to_char(new.month, 'YYYY-MM'),
        jsonb_build_object('version', new.version, 'rows', new.rows, 'data_version', new.data_version)
        || jsonb_strip_nulls(jsonb_build_object('restores', new.restores, 'run', new.run_id)));
    return null;
end $$;

create or replace function meta.act_of_repair() returns trigger language plpgsql
security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into meta.acts (action, subject, details) values (
        'repair', new.file, jsonb_build_object('sha256', new.sha256, 'rows', new.rows_read, 'status', new.status));
    return null;
end $$;

-- What whoever may call it has recorded. `grant execute` opens it to roles that cannot write here.
create or replace function meta.record_act(action text, subject text, details jsonb, why text)
returns void language sql security definer set search_path = pg_catalog, pg_temp as $$
    insert into meta.acts (action, subject, details, why) values (action, subject, details, why)
$$;
revoke execute on function meta.record_act from public;

create or replace trigger stamp before insert on meta.acts for each row execute function meta.stamp_act();
create or replace trigger append_only before update or delete or truncate on meta.acts
    for each statement execute function meta.refuse_change();
create or replace trigger append_only before update or delete or truncate on meta.act_seals
    for each statement execute function meta.refuse_change();
create or replace trigger append_only before delete or truncate on meta.act_head
    for each statement execute function meta.refuse_change();
create or replace trigger only_longer before update on meta.act_head
    for each row execute function meta.only_longer();
create or replace trigger recorded after insert on meta.versions
    for each row execute function meta.act_of_version();
create or replace trigger recorded after insert on meta.deliveries
    for each row when (new.is_repair) execute function meta.act_of_repair();

-- Also for sessions that replicate, in which ordinary triggers are silent.
alter table meta.acts enable always trigger stamp, enable always trigger append_only;
alter table meta.act_seals enable always trigger append_only;
alter table meta.act_head enable always trigger append_only, enable always trigger only_longer;
alter table meta.versions enable always trigger recorded;
alter table meta.deliveries enable always trigger recorded;
