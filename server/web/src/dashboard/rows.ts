/** Rows of a period, read page by page. */

import { ask, type Asking } from "./api";
import { CANDLES as LENGTHS, type CandleInterval } from "./choice";
import { type Candle, CANDLES, COVERAGE, type Coverage, EXPECTED, FIRST_SLOT, MAX_LIMIT, type Price, PRICES, SOURCES } from "./documents";
import { SECOND, print } from "./time";

export interface Period {
  ticker: string;
  /** Milliseconds since the epoch, as everywhere on this page. */
  from: number;
  to: number;
}

type Expected = Pick<Coverage, "expected">;
type Stamped = Pick<Price, "timestamp">;

export function variablesOf({ ticker, from, to }: Period): { ticker: string; fromDt: string; toDt: string } {
  return { ticker, fromDt: print(from), toDt: print(to) };
}

/** Oldest first; `after` is a timestamp that is there already. */
export function readPrices(period: Period, after: string | null, asking: Asking): Promise<Price[]> {
  return readPages<Price>(PRICES, period, after, asking);
}

/** When each price is from and how it came to be stored: what a candle does not say of its prices. */
export function readSources(period: Period, after: string | null, asking: Asking) {
  return readPages<Pick<Price, "timestamp" | "source">>(SOURCES, period, after, asking);
}

async function readPages<Row extends Stamped>(
  query: string,
  period: Period,
  after: string | null,
  asking: Asking,
): Promise<Row[]> {
  const rows: Row[] = [];
  for (;;) {
    const variables = { ...variablesOf(period), limit: MAX_LIMIT, after };
    const { pricesInPeriod: page } = await ask<{ pricesInPeriod: Row[] }>(query, variables, asking);
    rows.push(...page);
    if (page.length < MAX_LIMIT) return rows;
    after = page[page.length - 1]!.timestamp;
  }
}

/** From the candle that the period begins in to the one that it ends in. */
export async function readCandles(period: Period, interval: CandleInterval, asking: Asking): Promise<Candle[]> {
  const limit = Math.min(MAX_LIMIT, Math.ceil((period.to - period.from) / (LENGTHS[interval].seconds * SECOND)) + 2);
  const variables = { ...variablesOf(period), interval, limit };
  return (await ask<{ candles: Candle[] }>(CANDLES, variables, asking)).candles;
}

export async function readCoverage(period: Period, asking: Asking): Promise<Coverage> {
  return (await ask<{ coverage: Coverage }>(COVERAGE, variablesOf(period), asking)).coverage;
}

/**
 * The first slot that is expected, where collecting began inside of the period. `null` where it did not, or the grid was
 * another one since, so that the API cannot tell; `undefined` while no slot has ended. `expected`: of the whole period.
 */
export async function readBeginning(
  period: Period,
  grid: number,
  expected: number,
  asking: Asking,
): Promise<number | null | undefined> {
  if (expected === 0) return undefined;
  if (expected * grid > period.to - period.from - 2 * grid) return null;
  // Which slots have ended depends on the moment, but for those of before this one.
  const end = Math.floor(period.to / grid) * grid;
  const { ticker, fromDt, toDt } = variablesOf({ ...period, to: end });
  const counted = await ask<{ coverage: Expected }>(EXPECTED, { ticker, fromDt, toDt }, asking);
  const first = end - counted.coverage.expected * grid;
  if (first === end) return undefined;
  const slot = { slot: print(first), toDt: print(first + grid) };
  const told = await ask<{ before: Expected; first: Expected }>(FIRST_SLOT, { ticker, fromDt, ...slot }, asking);
  return told.before.expected === 0 && told.first.expected === 1 ? first : null;
}

/** Puts a row where its timestamp belongs, mostly at the end; of one that is there already, the new one stays. */
export function insertRow<Row extends Stamped>(rows: Row[], row: Row): void {
  let end = rows.length;
  while (end > 0 && rows[end - 1]!.timestamp > row.timestamp) end -= 1;
  const isKnown = rows[end - 1]?.timestamp === row.timestamp;
  rows.splice(isKnown ? end - 1 : end, isKnown ? 1 : 0, row);
}

/** The candles with those read again in their places. */
export function mergeCandles(candles: Candle[], fresh: Candle[]): Candle[] {
  const [first, last] = [fresh[0], fresh.at(-1)];
  if (!first || !last) return candles;
  return [
    ...candles.filter(({ start }) => start < first.start),
    ...fresh,
    ...candles.filter(({ start }) => start > last.start),
  ];
}
