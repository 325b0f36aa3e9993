/** Reads the rows of a period, page by page (keyset pagination). */

import { ask, type Asking } from "../data/api";
import { type Candle, CANDLES, COVERAGE, type Coverage, EXPECTED, FIRST_SLOT, MAX_LIMIT, type Price, PRICES, SOURCES } from "../data/documents";
import { SECOND, print } from "../text/time";
import { CANDLES as LENGTHS, type CandleInterval, type Interval } from "./choice";

export interface Period {
  ticker: string;
  /** Milliseconds since the epoch. */
  from: number;
  to: number;
}

type Expected = Pick<Coverage, "expected">;
type Stamped = Pick<Price, "timestamp">;

export function variablesOf({ ticker, from, to }: Period): { ticker: string; fromDt: string; toDt: string } {
  return { ticker, fromDt: print(from), toDt: print(to) };
}

/** The address of the period's file. */
export function exportOf({ ticker, from, to }: Period, interval: Interval): string {
  const given = { ticker, from: print(from), to: print(to) };
  return interval === "PRICES"
    ? `export/prices.csv?${new URLSearchParams(given)}`
    : `export/candles.csv?${new URLSearchParams({ ...given, interval })}`;
}

/** Oldest first; `after` is exclusive. */
export function readPrices(period: Period, after: string | null, asking: Asking): Promise<Price[]> {
  return readPages<Price>(PRICES, period, after, asking);
}

/** The timestamp and source of each price, which candles do not contain. */
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

/** All candles that overlap the period. */
export async function readCandles(period: Period, interval: CandleInterval, asking: Asking): Promise<Candle[]> {
  const limit = Math.min(MAX_LIMIT, Math.ceil((period.to - period.from) / (LENGTHS[interval].seconds * SECOND)) + 2);
  const variables = { ...variablesOf(period), interval, limit };
  return (await ask<{ candles: Candle[] }>(CANDLES, variables, asking)).candles;
}

export async function readCoverage(period: Period, asking: Asking): Promise<Coverage> {
  return (await ask<{ coverage: Coverage }>(COVERAGE, variablesOf(period), asking)).coverage;
}

/**
 * The first expected slot if collecting began inside the period. `null` if it began earlier, or if the schedule has
 * changed since, because then the API cannot tell; `undefined` while no slot has ended. `expected`: of the whole period.
 */
export async function readBeginning(
  period: Period,
  grid: number,
  expected: number,
  asking: Asking,
): Promise<number | null | undefined> {
  if (expected === 0) return undefined;
  if (expected * grid > period.to - period.from - 2 * grid) return null;
  // Count only slots before the current one, because the answer would otherwise depend on the moment.
  const end = Math.floor(period.to / grid) * grid;
  const { ticker, fromDt, toDt } = variablesOf({ ...period, to: end });
  const counted = await ask<{ coverage: Expected }>(EXPECTED, { ticker, fromDt, toDt }, asking);
  const first = end - counted.coverage.expected * grid;
  if (first === end) return undefined;
  const slot = { slot: print(first), toDt: print(first + grid) };
  const slots = await ask<{ before: Expected; first: Expected }>(FIRST_SLOT, { ticker, fromDt, ...slot }, asking);
  return slots.before.expected === 0 && slots.first.expected === 1 ? first : null;
}

/** Inserts a row by its timestamp, mostly at the end. Replaces a row with the same timestamp. */
export function insertRow<Row extends Stamped>(rows: Row[], row: Row): void {
  let end = rows.length;
  while (end > 0 && rows[end - 1]!.timestamp > row.timestamp) end -= 1;
  const isKnown = rows[end - 1]?.timestamp === row.timestamp;
  rows.splice(isKnown ? end - 1 : end, isKnown ? 1 : 0, row);
}

/** Replaces the candles between the first and the last fresh one. */
export function mergeCandles(candles: Candle[], fresh: Candle[]): Candle[] {
  const [first, last] = [fresh[0], fresh.at(-1)];
  if (!first || !last) return candles;
  return [
    ...candles.filter(({ start }) => start < first.start),
    ...fresh,
    ...candles.filter(({ start }) => start > last.start),
  ];
}
