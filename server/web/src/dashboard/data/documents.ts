/** The GraphQL documents of this page and the types of their answers. Each panel links to its document in GraphiQL. */

export type Source = "SCHEDULED" | "REQUESTED" | "RECOVERED" | "BACKFILLED";

export interface Price {
  ticker: string;
  price: string;
  timestamp: string;
  observedAt: string;
  source: Source;
  testnet: boolean;
}

/** A price of the live connection, with its place in the order of storing. */
export interface PlacedPrice extends Price {
  cursor: string;
}

export interface Ticker {
  name: string;
  intervalSeconds: number;
  lagSeconds: number | null;
  fillingTo: string | null;
  latest: Price | null;
}

export interface Candle {
  start: string;
  open: string;
  high: string;
  low: string;
  close: string;
  samples: number;
  complete: boolean;
}

export interface Gap {
  fromDt: string;
  toDt: string;
  missing: number;
  reason: "NOT_COLLECTED" | "EXCHANGE_ERROR" | "REJECTED_VALUE" | "STORAGE_ERROR";
  detail: string | null;
}

export interface Coverage {
  expected: number;
  present: number;
  observed: number;
  averaged: number;
  complete: boolean;
  gaps: Gap[];
}

export interface FetchJob {
  id: string;
  status: "QUEUED" | "RUNNING" | "SUCCEEDED" | "PARTIAL" | "FAILED";
  tickers: string[];
  prices: Price[];
  failures: { ticker: string; code: string; message: string }[];
}

/** The most rows of one answer. */
export const MAX_LIMIT = 10_000;

const PRICE = "ticker price timestamp observedAt source testnet";

export const TICKERS = `query Tickers {
  tickers {
    name
    intervalSeconds
    lagSeconds
    fillingTo
    latest { ${PRICE} }
  }
}`;

export const PRICES = `query Prices($ticker: String!, $fromDt: DateTime!, $toDt: DateTime!, $limit: Int!, $after: DateTime) {
  pricesInPeriod(ticker: $ticker, fromDt: $fromDt, toDt: $toDt, limit: $limit, after: $after) {
    ${PRICE}
  }
}`;

export const SOURCES = `query Sources($ticker: String!, $fromDt: DateTime!, $toDt: DateTime!, $limit: Int!, $after: DateTime) {
  pricesInPeriod(ticker: $ticker, fromDt: $fromDt, toDt: $toDt, limit: $limit, after: $after) {
    timestamp
    source
  }
}`;

export const CANDLES = `query Candles($ticker: String!, $interval: CandleInterval!, $fromDt: DateTime!, $toDt: DateTime!, $limit: Int!) {
  candles(ticker: $ticker, interval: $interval, fromDt: $fromDt, toDt: $toDt, limit: $limit) {
    start
    open
    high
    low
    close
    samples
    complete
  }
}`;

export const COVERAGE = `query Coverage($ticker: String!, $fromDt: DateTime!, $toDt: DateTime!) {
  coverage(ticker: $ticker, fromDt: $fromDt, toDt: $toDt) {
    expected
    present
    observed
    averaged
    complete
    gaps(limit: ${MAX_LIMIT}) { fromDt toDt missing reason detail }
  }
}`;

/** How many prices a period should have. `FIRST_SLOT` asks the same of one slot and of the period before it. */
export const EXPECTED = `query Expected($ticker: String!, $fromDt: DateTime!, $toDt: DateTime!) {
  coverage(ticker: $ticker, fromDt: $fromDt, toDt: $toDt) { expected }
}`;

export const FIRST_SLOT = `query FirstSlot($ticker: String!, $fromDt: DateTime!, $slot: DateTime!, $toDt: DateTime!) {
  before: coverage(ticker: $ticker, fromDt: $fromDt, toDt: $slot) { expected }
  first: coverage(ticker: $ticker, fromDt: $slot, toDt: $toDt) { expected }
}`;

/** The first price of a period, for several tickers: `s0` with `$t0`, `$a0` and `$b0`, `s1` … */
export function openPrices(count: number): string {
  const numbers = [...Array(count).keys()];
  const variables = numbers.map((n) => `$t${n}: String!, $a${n}: DateTime!, $b${n}: DateTime!`).join(", ");
  const fields = numbers.map(
    (n) => `  s${n}: statistics(ticker: $t${n}, fromDt: $a${n}, toDt: $b${n}) { open { price timestamp } }`,
  );
  return `query OpenPrices(${variables}) {\n${fields.join("\n")}\n}`;
}

/** The newest gaps of several tickers until `$toDt`: `c0` with `$t0` and `$f0`, `c1` … */
export function recentGaps(count: number): string {
  const numbers = [...Array(count).keys()];
  const variables = ["$toDt: DateTime!", ...numbers.map((n) => `$t${n}: String!, $f${n}: DateTime!`)].join(", ");
  const fields = numbers.map(
    (n) =>
      `  c${n}: coverage(ticker: $t${n}, fromDt: $f${n}, toDt: $toDt) { gaps { fromDt toDt missing reason detail } }`,
  );
  return `query RecentGaps(${variables}) {\n${fields.join("\n")}\n}`;
}

const FETCH_JOB = `id status tickers prices { ${PRICE} } failures { ticker code message }`;

export const FETCH_PRICES = `mutation FetchPrices($tickers: [String!]) {
  fetchPrices(tickers: $tickers) { ${FETCH_JOB} }
}`;

export const FETCH_PROGRESS = `subscription FetchProgress($id: ID!) {
  fetchProgress(id: $id) { ${FETCH_JOB} }
}`;

export const FETCH_STATE = `query FetchState($id: ID!) {
  fetchJob(id: $id) { ${FETCH_JOB} }
}`;

export const PRICE_UPDATES = `subscription PriceUpdates($tickers: [String!], $since: DateTime, $after: ID) {
  priceUpdates(tickers: $tickers, since: $since, after: $after) { ${PRICE} cursor }
}`;

/** The address that opens this document in GraphiQL, ready to run. */
export function inGraphiQL(query: string, variables: object = {}): string {
  return `graphql?${new URLSearchParams({ query, variables: JSON.stringify(variables, null, 2) })}`;
}
