/** Turns the rows of a period into points of a line, its breaks, and its backfilled stretches. */

import type { Candle, Gap, Price, Source } from "../data/documents";
import { parse } from "../text/time";
import type { History, Sourced } from "./history";

/** A point of the chart: a price or a candle. */
export interface Item {
  /** Its place on the time axis: a price's timestamp, a candle's middle. */
  at: number;
  /** The half-open period [from, to) of the price or the candle. */
  from: number;
  to: number;
  isBackfilled: boolean;
  price?: Price;
  candle?: Candle;
}

export interface Stretch {
  from: number;
  to: number;
}

/** Cached, because prices never change and thousands may be drawn every second. */
const itemsOfPrices = new WeakMap<Price, Item>();

function itemOf(price: Price, step: number): Item {
  let item = itemsOfPrices.get(price);
  if (!item) {
    const at = parse(price.timestamp);
    item = { at, from: at, to: at + step, isBackfilled: price.source === "BACKFILLED", price };
    itemsOfPrices.set(price, item);
  }
  return item;
}

export function itemsOf(history: History): Item[] {
  const { step } = history;
  if (history.interval === "PRICES") return history.prices.map((price) => itemOf(price, step));
  const backfilled = stretchesOf("BACKFILLED", history.sources ?? [], 1);
  let next = 0;
  return history.candles.map((candle) => {
    const from = parse(candle.start);
    const to = from + step;
    while ((backfilled[next]?.to ?? Infinity) <= from) next += 1;
    return { at: from + step / 2, from, to, isBackfilled: (backfilled[next]?.from ?? Infinity) < to, candle };
  });
}

/** Missing slots, oldest first. */
export interface Hole extends Stretch {
  gap: Gap;
}

export function holesOf(gaps: Gap[]): Hole[] {
  return gaps.map((gap) => ({ from: parse(gap.fromDt), to: parse(gap.toDt), gap }));
}

/** A line breaks if a slot between two neighbours is missing; between candles, if a whole candle is missing. */
export function breaksBetween(a: Item, b: Item, holes: Hole[]): boolean {
  if (a.candle && b.from <= a.to) return false;
  const [from, to] = a.candle ? [a.to, b.from] : [a.at, b.at];
  const hole = holes[firstWith(holes, (one) => one.to > from)];
  return hole !== undefined && hole.from < to;
}

/** Runs of rows of one source, each from its first row to the slot after its last row. */
export function stretchesOf(wanted: Source, rows: Sourced[], step: number): Stretch[] {
  const stretches: Stretch[] = [];
  let open: Stretch | null = null;
  for (const { timestamp, source } of rows) {
    if (source === "REQUESTED") continue;
    if (source !== wanted) {
      open = null;
      continue;
    }
    const at = parse(timestamp);
    if (open) open.to = at + step;
    else stretches.push((open = { from: at, to: at + step }));
  }
  return stretches;
}

/** How many rows each source has. */
export function countBySource(rows: Sourced[]): Record<Sourced["source"], number> {
  const counts = { SCHEDULED: 0, REQUESTED: 0, RECOVERED: 0, BACKFILLED: 0 };
  for (const { source } of rows) counts[source] += 1;
  return counts;
}

/** The index of the item nearest to an instant, or -1 if there are none. */
export function nearest(items: Item[], at: number): number {
  const next = firstWith(items, (item) => item.at >= at);
  const [before, after] = [items[next - 1], items[next]];
  return before && (!after || at - before.at <= after.at - at) ? next - 1 : after ? next : -1;
}

export function holeAt(holes: Hole[], at: number): Hole | null {
  const hole = holes[firstWith(holes, (one) => one.to > at)];
  return hole && hole.from <= at ? hole : null;
}

/** Binary search: the first index at which a condition holds, or the length if it never holds. */
function firstWith<One>(list: One[], holds: (one: One) => boolean): number {
  let low = 0;
  for (let high = list.length; low < high; ) {
    const middle = (low + high) >> 1;
    if (holds(list[middle]!)) high = middle;
    else low = middle + 1;
  }
  return low;
}
