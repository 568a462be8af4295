-- The grammar by which a landed text becomes a value, and surrogate keys, for PostgreSQL 16 and later.
--
-- Its twin is metalayer/landing/macros.sql, for DuckDB; a test holds the two together.
-- Each try_ function answers NULL for a text that is not such a value; none raises, whatever the text.
-- Tables, ledgers and anything else that keeps state do not belong here. Safe to run again at any time.
--
-- Speed: a try_ function is an SQL expression that PostgreSQL inlines, so that an ordinary value costs
-- no function call and no regular expression: it is ordinary if it is valid and prints as it was
-- written. Only what does not goes to the any_ function behind. Inlining asks three things of them: one
-- expression, not STRICT, and STABLE rather than IMMUTABLE, since pg_input_is_valid and text -> date
-- count as STABLE. The results depend on no setting: under a DateStyle other than ISO no date prints
-- as it was written, and the slower way answers the same.

create schema if not exists meta;

-- Without the whitespace around it; NULL if nothing remains.
create or replace function meta.clean_text(t text) returns text
language sql immutable parallel safe
return nullif(btrim(t, E' \t\r\n\u00A0'), '');

-- Any number of the grammar, however written; NULL if it takes more than 30 digits to write plainly.
create or replace function meta.any_number(t text) returns numeric
language plpgsql immutable strict parallel safe
as $$
declare
    cleaned constant text := meta.clean_text(t);
    number numeric;
begin
    -- Past 50 bytes there are more than 30 digits, and PostgreSQL might refuse to hold them.
    if cleaned is null or octet_length(cleaned) > 50
        or cleaned !~ '^([+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?|[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?)$'
        or length(regexp_replace(regexp_replace(cleaned, '[eE].*$', ''), '[^0-9]', '', 'g')) > 30
    then
        return null;
    end if;
    number := trim_scale(replace(cleaned, ',', '')::numeric);
    if length(replace(ltrim(abs(number)::text, '0'), '.', '')) > 30 then
        return null;
    end if;
    return number;
end
$$;

create or replace function meta.any_bigint(t text) returns bigint
language plpgsql immutable strict parallel safe
as $$
declare
    number constant numeric := meta.any_number(t);
begin
    if number = trunc(number)
        and number between -9223372036854775808 and 9223372036854775807
    then
        return number::bigint;
    end if;
    return null;
end
$$;

create or replace function meta.any_numeric(t text, p int, s int) returns numeric
language plpgsql immutable strict parallel safe
as $$
declare
    number constant numeric := meta.any_number(t);
begin
    if scale(number) <= s and abs(number) < 10::numeric ^ (p - s) then
        return number;
    end if;
    return null;
end
$$;

-- From digits in the order year, month, day; NULL if there is no such day.
create or replace function meta.day_of(year text, month text, day text) returns date
language plpgsql immutable strict parallel safe
as $$
declare
    last_day constant int := case
        when month::int in (4, 6, 9, 11) then 30
        when month::int <> 2 then 31
        when year::int % 4 = 0 and (year::int % 100 <> 0 or year::int % 400 = 0) then 29
        else 28
    end;
begin
    if year::int >= 1 and month::int between 1 and 12 and day::int between 1 and last_day then
        return make_date(year::int, month::int, day::int);
    end if;
    return null;
end
$$;

-- Any day or moment of the grammar, in naive UTC; with `as_written` a zone does not move it.
-- The expressions only test: one that also captures takes PostgreSQL 0.1 ms a row.
create or replace function meta.any_moment(t text, as_written boolean) returns timestamp
language plpgsql immutable strict parallel safe
as $$
declare
    cleaned constant text := meta.clean_text(t);
    day date;
    rest text;
    digits text;
    seconds interval := '0';
    zone interval := '0';
    moment timestamp;
begin
    if cleaned ~ '^[0-9]{8}$' then
        return meta.day_of(left(cleaned, 4), substr(cleaned, 5, 2), substr(cleaned, 7, 2));
    end if;
    if cleaned ~ '^[0-9]{1,2}/[0-9]{1,2}/[0-9]{4}$' then
        return meta.day_of(
            split_part(cleaned, '/', 3), split_part(cleaned, '/', 2), split_part(cleaned, '/', 1)
        );
    end if;
    if cleaned !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}' or octet_length(cleaned) > 40 then
        return null;
    end if;
    day := meta.day_of(left(cleaned, 4), substr(cleaned, 6, 2), substr(cleaned, 9, 2));
    rest := substr(cleaned, 11);
    if rest = '' or day is null then
        return day;
    end if;
    if rest !~ '^[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,9})?)?( ?([Zz]|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?))?$' then
        return null;
    end if;
    if as_written then
        return day;
    end if;
    moment := day + make_interval(hours => substr(rest, 2, 2)::int, mins => substr(rest, 5, 2)::int);
    rest := substr(rest, 7);
    if rest like ':%' then
        seconds := (substr(rest, 2, 2) || ' seconds')::interval;
        rest := substr(rest, 4);
    end if;
    if rest like '.%' then
        -- Digits past the microsecond are cut: rounding could reach the next second, or year.
        digits := left(rest, length(rest) - length(ltrim(rest, '.0123456789')));
        seconds := seconds + (rpad(substr(digits, 2, 6), 6, '0') || ' microseconds')::interval;
        rest := substr(rest, length(digits) + 1);
    end if;
    rest := replace(ltrim(rest), ':', '');
    if rest ~ '^[+-]' then
        zone := make_interval(
            hours => substr(rest, 2, 2)::int, mins => coalesce(nullif(substr(rest, 4, 2), ''), '0')::int
        );
        if rest like '-%' then
            zone := -zone;
        end if;
    end if;
    moment := moment + seconds - zone;
    if moment >= timestamp '0001-01-01' and moment < timestamp '10000-01-01' then
        return moment;
    end if;
    return null;
end
$$;

create or replace function meta.any_date(t text) returns date
language sql immutable parallel safe
return meta.any_moment(t, true)::date;

create or replace function meta.any_timestamp(t text) returns timestamp
language sql immutable parallel safe
return meta.any_moment(t, false);

-- A whole number within 64 bits: '12', ' 12 ', '12.0', '1,234', '1e3'.
create or replace function meta.try_bigint(t text) returns bigint
language sql stable parallel safe
return case
    when pg_input_is_valid(t, 'bigint') and t::bigint::text = t then t::bigint
    else meta.any_bigint(t)
end;

-- A number that numeric(p, s) holds without rounding; zeros past the scale are fine.
create or replace function meta.try_numeric(t text, p int, s int) returns numeric
language sql stable parallel safe
return case
    when octet_length(t) <= 30 and pg_input_is_valid(t, 'numeric') and t::numeric::text = t
        -- The comparison also leaves out NaN and the infinities, which print as they were written.
        and abs(t::numeric) < 10::numeric ^ (p - s) and scale(t::numeric) <= s
    then t::numeric
    else meta.any_numeric(t, p, s)
end;

-- The day as it is written: '2025-01-31', '20250131', '31/1/2025', or a moment on that day.
create or replace function meta.try_date(t text) returns date
language sql stable parallel safe
return case
    when t like '____-__-__' and pg_input_is_valid(t, 'date') and t::date::text = t then t::date
    when t like '____-__-__ __:__:__%' and pg_input_is_valid(t, 'timestamp')
        and t::timestamp::text = t
    then t::timestamp::date
    else meta.any_date(t)
end;

-- Naive UTC: a zone shifts it, no zone means UTC, a day alone is its midnight.
create or replace function meta.try_timestamp(t text) returns timestamp
language sql stable parallel safe
return case
    when t like '____-__-__ __:__:__%' and pg_input_is_valid(t, 'timestamp')
        and t::timestamp::text = t
    then t::timestamp
    when t like '____-__-__T__:__:__%' and t not like '%Z_%'
        and pg_input_is_valid(translate(t, 'TZ', ' '), 'timestamp')
        and translate(t, 'TZ', ' ')::timestamp::text = translate(t, 'TZ', ' ')
    then translate(t, 'TZ', ' ')::timestamp
    when t like '____-__-__' and pg_input_is_valid(t, 'date') and t::date::text = t
    then t::date::timestamp
    else meta.any_timestamp(t)
end;

-- true, t, yes, y, 1 and false, f, no, n, 0, in any case.
create or replace function meta.try_boolean(t text) returns boolean
language sql immutable parallel safe
return case
    when t in ('true', 'True', 'TRUE', '1') then true
    when t in ('false', 'False', 'FALSE', '0') then false
    when lower(meta.clean_text(t) collate "C") in ('true', 't', 'yes', 'y', '1') then true
    when lower(meta.clean_text(t) collate "C") in ('false', 'f', 'no', 'n', '0') then false
end;

-- The first 64 bits of the md5 of a business key's parts. Never 0: that is the Unknown member.
-- A NULL part is told from an empty one, and ('a', 'bc') from ('ab', 'c').
create or replace function meta.surrogate_key(variadic parts text[]) returns bigint
language sql stable parallel safe
return coalesce(
    nullif(('x' || left(md5(array_to_string(parts, E'\x1f', E'\x1e')), 16))::bit(64)::bigint, 0), 1
);

-- A phone number as E.164. Without a country, ten digits, or eleven from 1, are North American.
create or replace function meta.any_phone(digits text) returns text
language sql immutable parallel safe
return case
    when digits like '+%' and length(digits) between 9 and 16 then digits
    when digits like '+%' then null
    when length(digits) = 10 then '+1' || digits
    when length(digits) = 11 and digits like '1%' then '+' || digits
    when length(digits) between 10 and 17 and digits like '00%' then '+' || substring(digits from 3)
end;

-- Of 200 bytes at most: what `translate` takes grows with the square of a text.
create or replace function meta.try_phone(t text) returns text
language sql immutable parallel safe
return case when octet_length(t) <= 200 then meta.any_phone(
    case when meta.clean_text(t) like '+%' then '+' else '' end || translate(t, translate(t, '0123456789', ''), '')
) end;

-- An encrypted value; NULL if what was delivered is no value of its column's type.
create or replace function meta.well_sealed(t text) returns text
language sql immutable parallel safe
return case when t not like '!%' then t end;
