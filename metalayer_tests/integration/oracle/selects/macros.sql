create macro first_64_bits(text) as cast(concat('0x', left(md5(text), 16)) as ubigint)::hugeint;
create macro signed(bits) as
    cast(case when bits >= 9223372036854775808 then bits - 18446744073709551616 else bits end
         as bigint);
create macro key_of(text) as
    case when first_64_bits(text) = 0 then 1::bigint else signed(first_64_bits(text)) end;
create macro after_month(m) as cast(m + interval 1 month as date);
create macro month_of(d) as cast(date_trunc('month', d) as date);
create macro as_date_key(d) as cast(strftime(d, '%Y%m%d') as bigint);
create macro money(x) as cast(coalesce(x, 0) as decimal(18, 2));
create macro exact(x) as cast(x as decimal(20, 4));
-- amount / n to the cent, m / n to 4 places: half away from zero, never leaving the integers
create macro cents_each(amount, n) as
    case when n = 0 then 0::hugeint
         else ((amount * 100)::hugeint * 2 + n) // (2 * n) end;
create macro ten_thousandths(m, n) as
    case when n = 0 then 0::hugeint else (m::hugeint * 20000 + n) // (2 * n) end;
