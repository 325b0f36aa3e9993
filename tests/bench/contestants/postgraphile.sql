-- What PostGraphile turns into root fields: `language sql stable` functions, which PostgreSQL takes apart and plans as
-- if their text stood in the query.
create schema peers;

create function peers.latest_price(ticker text) returns setof prices rows 1 language sql stable as $$
    select p.* from prices as p where p.ticker = latest_price.ticker order by p.timestamp desc limit 1
$$;

create function peers.price_history(ticker text, "limit" integer) returns setof prices language sql stable as $$
    select p.* from prices as p where p.ticker = price_history.ticker
    order by p.timestamp desc limit price_history."limit"
$$;

create function peers.prices_in_period(ticker text, from_dt timestamptz, to_dt timestamptz, "limit" integer)
returns setof prices language sql stable as $$
    select p.* from prices as p
    where p.ticker = prices_in_period.ticker
      and p.timestamp >= prices_in_period.from_dt
      and p.timestamp <= prices_in_period.to_dt
    order by p.timestamp limit prices_in_period."limit"
$$;
