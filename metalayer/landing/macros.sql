-- The grammar by which a landed text becomes a value, for DuckDB.
--
-- Its twin is metalayer/warehouse/functions.sql, for PostgreSQL; a test holds the two together.
-- Only what is needed before a row is in PostgreSQL belongs here: its month, its key, and what is encrypted.
-- Silver does the typing of the rest.
-- Each macro answers NULL for a text that is not such a value; none raises, whatever the text.
-- The ordinary form is tested first, so that a million clean values cost a fraction of a second.
-- `[x].list_transform(lambda v: ...)[1]` gives x a name, so that it is computed once.

create macro clean(t) as
    nullif(trim(t, ' ' || chr(9) || chr(10) || chr(13) || chr(160)), '');

-- {whole, part, exponent} of an unsigned number; a thousands comma is gone by then.
create macro number_pieces(t) as {
    'whole': regexp_extract(t, '^([0-9]*)', 1),
    'part': regexp_extract(t, '^[0-9]*\.([0-9]*)', 1),
    'exponent': coalesce(try_cast(regexp_extract(t, '[eE]([+-]?[0-9]+)$', 1) as integer), 0)
};

-- The digits with the point moved by the exponent: {whole, part}, without zeros that say nothing.
create macro plain_pieces(n) as {
    'whole': ltrim(left(
        n.whole || n.part || repeat('0', greatest(n.exponent - length(n.part), 0)),
        greatest(length(n.whole) + n.exponent, 0)
    ), '0'),
    'part': rtrim(substring(
        repeat('0', greatest(-n.exponent - length(n.whole), 0)) || n.whole || n.part,
        greatest(length(n.whole) + n.exponent, 0) + 1
    ), '0')
};

create macro signed_text(sign, p) as
    case
        when length(p.whole) + length(p.part) > 30 then null
        when p.whole = '' and p.part = '' then '0'
        else sign
            || case when p.whole = '' then '0' else p.whole end
            || case when p.part = '' then '' else '.' || p.part end
    end;

create macro any_number_text(t) as
    case
        when regexp_full_match(
            t,
            '[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?|[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?'
        ) and length(regexp_replace(regexp_replace(t, '[eE].*$', ''), '[^0-9]', '', 'g')) <= 30
        then [number_pieces(ltrim(replace(t, ',', ''), '+-'))]
            .list_transform(lambda n: plain_pieces(n))
            .list_transform(
                lambda p: signed_text(case when starts_with(t, '-') then '-' else '' end, p)
            )[1]
    end;

-- A number written plainly: no plus, no thousands commas, no exponent, no idle zeros. '-0' is '0'.
create macro number_text(t) as
    case
        when regexp_full_match(t, '0|-?[1-9][0-9]{0,17}') then t
        when regexp_full_match(t, '-?(0|[1-9][0-9]{0,14})\.[0-9]{0,10}[1-9]') then t
        else [clean(t)].list_transform(lambda c: any_number_text(c))[1]
    end;

create macro try_bigint(t) as
    case
        when regexp_full_match(t, '0|-?[1-9][0-9]{0,17}') then cast(t as bigint)
        else [clean(t)].list_transform(lambda c: any_number_text(c)).list_transform(
            lambda n: case when not contains(n, '.') then try_cast(n as bigint) end
        )[1]
    end;

-- The number as text (DuckDB's types take no parameters in a macro) if numeric(p, s) holds it exactly.
create macro try_numeric(t, p, s) as
    [number_text(t)].list_transform(
        lambda n: case
            when length(ltrim(split_part(ltrim(n, '-'), '.', 1), '0')) <= p - s
                and length(split_part(n, '.', 2)) <= s
            then n
        end
    )[1];

create macro iso_day(t) as
    case when t >= '0001' then try_cast(t as date) end;

create macro is_moment(t) as
    regexp_full_match(
        t,
        '[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,9})?)?( ?([Zz]|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?))?'
    );

create macro any_date(t) as
    case
        when regexp_full_match(t, '[0-9]{4}-[0-9]{2}-[0-9]{2}') then iso_day(t)
        when regexp_full_match(t, '[0-9]{8}')
        then iso_day(substring(t, 1, 4) || '-' || substring(t, 5, 2) || '-' || substring(t, 7, 2))
        when regexp_full_match(t, '[0-9]{1,2}/[0-9]{1,2}/[0-9]{4}')
        then iso_day(
            split_part(t, '/', 3)
            || '-' || lpad(split_part(t, '/', 2), 2, '0')
            || '-' || lpad(split_part(t, '/', 1), 2, '0')
        )
        when is_moment(t) then iso_day(substring(t, 1, 10))
    end;

-- The day as it is written: a zone does not move it.
create macro try_date(t) as
    case
        when regexp_full_match(t, '[0-9]{4}-[0-9]{2}-[0-9]{2}') then iso_day(t)
        else [clean(t)].list_transform(lambda c: any_date(c))[1]
    end;

create macro zone_minutes(z) as
    case when z in ('', 'Z', 'z') then 0 else
        (case when starts_with(z, '-') then -1 else 1 end) * (
            cast(substring(z, 2, 2) as integer) * 60
            + coalesce(try_cast(substring(replace(z, ':', ''), 4, 2) as integer), 0)
        )
    end;

create macro within_years(moment) as
    case when moment >= timestamp '0001-01-01' and moment < timestamp '10000-01-01' then moment end;

create macro any_timestamp(t) as
    case
        when is_moment(t) then within_years(
            try_cast(
                -- DuckDB would round a seventh digit; a clock that has not struck yet must not be moved on.
                substring(t, 1, 10) || ' ' || regexp_extract(
                    t, '^.{11}([0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?)', 1
                ) || case when regexp_matches(t, '^.{11}[0-9]{2}:[0-9]{2}:') then '' else ':00' end
                as timestamp
            ) - to_minutes(zone_minutes(regexp_extract(t, '^.{16}[0-9:.]* ?([Zz]|[+-].*)$', 1)))
        )
        else cast(any_date(t) as timestamp)
    end;

-- Naive UTC; a text without a zone is taken as UTC, a day alone as its midnight.
create macro try_timestamp(t) as
    case
        when t >= '0001' and regexp_full_match(
            t, '[0-9]{4}-[0-9]{2}-[0-9]{2} ([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?'
        ) then try_cast(t as timestamp)
        else [clean(t)].list_transform(lambda c: any_timestamp(c))[1]
    end;

create macro try_boolean(t) as
    case
        when lower(clean(t)) in ('true', 't', 'yes', 'y', '1') then true
        when lower(clean(t)) in ('false', 'f', 'no', 'n', '0') then false
    end;

-- A phone number as E.164. Without a country, ten digits, or eleven from 1, are North American.
create macro any_phone(digits) as
    case
        when starts_with(digits, '+') and length(digits) between 9 and 16 then digits
        when starts_with(digits, '+') then null
        when length(digits) = 10 then '+1' || digits
        when length(digits) = 11 and starts_with(digits, '1') then '+' || digits
        when length(digits) between 10 and 17 and starts_with(digits, '00') then '+' || substring(digits, 3)
    end;

create macro try_phone(t) as
    [case when strlen(t) <= 200 then clean(t) end].list_transform(
        lambda c: case when starts_with(c, '+') then '+' else '' end || regexp_replace(c, '[^0-9]', '', 'g')
    ).list_transform(lambda d: any_phone(d))[1];
