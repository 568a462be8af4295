select * from gold.customer_360
qualify row_number() over (partition by customer_id order by month desc) = 1
