import type { GraphiQLProps } from "graphiql";

export type Tab = NonNullable<GraphiQLProps["defaultTabs"]>[number];
type Ticker = { name: string; intervalSeconds: number };

const ANSWER_TIMEOUT = 3000;
const PERIOD_SECONDS = 3600;

const LATEST = `# The newest prices, and how fresh they are.
# Ctrl-Enter runs the query.
query LatestPrices($tickers: [String!]) {
  latestPrices(tickers: $tickers) {
    ticker
    price
    timestamp
    observedAt
    source
  }
  tickers {
    name
    lagSeconds
    stale
  }
}
`;

const HISTORY = `# Newest first. For the next page, pass the
# last timestamp as $before.
query PriceHistory(
  $ticker: String!
  $limit: Int!
  $before: DateTime
) {
  priceHistory(
    ticker: $ticker
    limit: $limit
    before: $before
  ) {
    timestamp
    price
    source
  }
}
`;

const PERIOD = `# The prices of a period, what is missing,
# and why.
query PeriodWithCoverage(
  $ticker: String!
  $fromDt: DateTime!
  $toDt: DateTime!
) {
  coverage(
    ticker: $ticker
    fromDt: $fromDt
    toDt: $toDt
  ) {
    expected
    present
    complete
    gaps {
      fromDt
      toDt
      missing
      reason
      detail
    }
  }
  pricesInPeriod(
    ticker: $ticker
    fromDt: $fromDt
    toDt: $toDt
    limit: 1000
  ) {
    timestamp
    price
    source
  }
}
`;

const PRICES_AT = `# The price that held at each instant, and the
# gap that explains why there is none.
query PricesAt($ticker: String!, $at: [DateTime!]!) {
  pricesAt(ticker: $ticker, at: $at) {
    at
    ageSeconds
    price {
      price
      timestamp
    }
    gap {
      fromDt
      toDt
      reason
    }
  }
}
`;

const STATISTICS = `# Change, average and volatility of a period.
query Statistics(
  $ticker: String!
  $fromDt: DateTime!
  $toDt: DateTime!
) {
  statistics(
    ticker: $ticker
    fromDt: $fromDt
    toDt: $toDt
  ) {
    open {
      price
    }
    high {
      price
      timestamp
    }
    low {
      price
      timestamp
    }
    close {
      price
    }
    change
    changePercent
    twap
    realizedVolatility
    samples
    coverage {
      expected
      present
    }
  }
}
`;

const FETCH = `# Run FetchPrices. The page copies the job's id
# into the variables for FetchProgress.
mutation FetchPrices($tickers: [String!]) {
  fetchPrices(tickers: $tickers) {
    id
    status
  }
}

subscription FetchProgress($id: ID!) {
  fetchProgress(id: $id) {
    status
    startedAt
    finishedAt
    prices {
      ticker
      price
      timestamp
    }
    failures {
      ticker
      code
      message
    }
  }
}
`;

const LIVE = `# The prices stored after $since, then each
# new price. To go on after a break, put the last
# price's cursor into $after, and null into $since.
subscription LivePrices(
  $tickers: [String!]
  $since: DateTime
  $after: ID
) {
  priceUpdates(
    tickers: $tickers
    since: $since
    after: $after
  ) {
    ticker
    price
    timestamp
    source
    cursor
  }
}
`;

/** Examples for a first visit, with this server's tickers and current times. */
export async function exampleTabs(url: string): Promise<Tab[]> {
  const tickers = await collectedTickers(url);
  const names = tickers.map(({ name }) => name);
  const [ticker] = names;
  const interval = Math.max(...tickers.map(({ intervalSeconds }) => intervalSeconds));
  const slot = Math.floor(Date.now() / 1000 / interval) * interval;
  return [
    tab(LATEST, { tickers: names }),
    tab(HISTORY, { ticker, limit: 10, before: null }),
    tab(PERIOD, { ticker, fromDt: instant(slot - PERIOD_SECONDS), toDt: instant(slot) }),
    tab(PRICES_AT, { ticker, at: [3, 2, 1, 0].map((n) => instant(slot - (n * PERIOD_SECONDS) / 3)) }),
    tab(STATISTICS, { ticker, fromDt: instant(slot - PERIOD_SECONDS), toDt: instant(slot) }),
    tab(FETCH, { tickers: names, id: "" }),
    tab(LIVE, { tickers: names, since: instant(slot - 2 * interval), after: null }),
  ];
}

function tab(query: string, variables: Record<string, unknown>): Tab {
  return { query, variables: JSON.stringify(variables, null, 2), headers: null };
}

function instant(seconds: number): string {
  return new Date(seconds * 1000).toISOString().replace(".000Z", "Z");
}

async function collectedTickers(url: string): Promise<Ticker[]> {
  try {
    const answer = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify({ query: "{ tickers { name intervalSeconds } }" }),
      signal: AbortSignal.timeout(ANSWER_TIMEOUT),
    });
    const tickers: Ticker[] = (await answer.json()).data.tickers;
    if (tickers.length > 0) return tickers;
  } catch {
    // The examples work with default values, and the first query shows the error.
  }
  return [{ name: "btc_usd", intervalSeconds: 60 }];
}
