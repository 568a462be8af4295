-- gold.fact_sales: each invoiced sale with the customer version of its day and its product.
-- grain: sales_id
-- Of the versions of a customer only the last of a day can be the one of a sale, and only those of
-- customers who bought in the window are looked at.
with sales as (
    select *
    from silver.erp_sales
    where sale_date >= :start and sale_date < :end
),

buyers as (
    select distinct customer_id
    from silver.erp_sales
    where sale_date >= :start and sale_date < :end
),

versions as (
    select
        customer_key,
        customer_id,
        cast(valid_from as date) as first_day,
        cast(lead(valid_from) over (partition by customer_id order by valid_from) as date) as next_day
    from gold.dim_customer
    where valid_from < :end and customer_id in (select buyers.customer_id from buyers)
),

last_versions as (
    select *
    from versions
    where next_day is null or next_day > first_day
),

products as (
    select
        product_key,
        product_code
    from gold.dim_product
    where first_seen_on < :end and product_key <> 0
)

select
    sales.sales_id,
    sales.sale_date,
    cast(to_char(sales.sale_date, 'YYYYMMDD') as bigint) as date_key,
    coalesce(last_versions.customer_key, 0) as customer_key,
    coalesce(products.product_key, 0) as product_key,
    sales.customer_id,
    sales.quantity,
    sales.sale_amount
from sales
left join last_versions
    on
        sales.customer_id = last_versions.customer_id
        and sales.sale_date >= last_versions.first_day
        and (sales.sale_date < last_versions.next_day or last_versions.next_day is null)
left join products
    on sales.product_code = products.product_code
