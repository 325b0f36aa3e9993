/** The shown period of one ticker: its prices or candles, what is missing, and what of it was backfilled. */

import { ApiError, isAbort } from "./api";
import { CANDLES, type Choice, effective, type Interval, RANGES } from "./choice";
import type { Candle, Coverage, Price, Source } from "./documents";
import { insertRow, mergeCandles, type Period, readBeginning, readCandles, readCoverage, readPrices, readSources } from "./rows";
import { now, parse, print, SECOND } from "./time";

export interface Sourced {
  timestamp: string;
  source: Source;
}

/** Rows that are looked through for backfilled ones where candles are drawn, which do not say it themselves. */
const MOST_SOURCES = 50_000;
const COVERAGE_EVERY = 10 * SECOND;
const REREAD_AFTER = 2 * SECOND;
const CANDLES_EVERY = SECOND;

export class History {
  interval: Interval = "PRICES";
  prices: Price[] = [];
  candles: Candle[] = [];
  coverage: Coverage | null = null;
  /** `undefined`: being read; `null`: too many to look through. */
  sources: Sourced[] | null | undefined;
  isLoading = false;
  error: ApiError | null = null;
  /** The period that coverage was counted of. */
  counted: Period | null = null;
  /** The first slot that is expected, as `readBeginning` answers it. */
  beginning: number | null | undefined;
  /** From slot to slot, in milliseconds. */
  grid = 0;

  private choice!: Choice;
  private loading = new AbortController();
  private countedAt = 0;
  private countingTook = 0;
  private rereading = 0;
  private arrived: Price[] = [];
  private changedSince = Infinity;
  private readingCandles = 0;

  constructor(private readonly onChange: () => void) {}

  get period(): Period {
    const to = now();
    return { ticker: this.choice.ticker, from: to - RANGES[this.choice.range].seconds * SECOND, to };
  }

  /** A candle's length, or the grid's; in milliseconds. */
  get step(): number {
    return this.interval === "PRICES" ? this.grid : CANDLES[this.interval].seconds * SECOND;
  }

  /** Read the whole period. What was there stays until then if it is the same ticker's. */
  async load(choice: Choice, grid: number): Promise<void> {
    this.loading.abort();
    this.loading = new AbortController();
    const asking = { signal: this.loading.signal };
    const interval = effective(choice, grid / SECOND);
    if (!this.choice || choice.ticker !== this.choice.ticker || interval !== this.interval) this.clear();
    // It may lie in a longer period.
    if (choice.range !== this.choice?.range) this.beginning ??= undefined;
    [this.choice, this.grid, this.interval, this.isLoading] = [choice, grid, interval, true];
    this.arrived = [];
    this.onChange();
    try {
      const { period } = this;
      const [rows] = await Promise.all([this.readRows(period, asking.signal), this.count(period, asking.signal)]);
      asking.signal.throwIfAborted();
      if (interval === "PRICES") this.prices = rows as Price[];
      else this.candles = rows as Candle[];
      // What was stored while the period was read may be in it or not.
      if (interval === "PRICES") this.arrived.forEach((price) => insertRow(this.prices, price));
      this.error = null;
      this.isLoading = false;
      this.onChange();
      if (interval !== "PRICES") await this.loadSources(period, asking.signal);
    } catch (error) {
      if (isAbort(error)) return;
      if (!(error instanceof ApiError)) throw error;
      this.error = error;
    }
    this.isLoading = false;
    this.onChange();
  }

  reload(): Promise<void> {
    return this.load(this.choice, this.grid);
  }

  isChosen(ticker: string): boolean {
    return this.choice?.ticker === ticker;
  }

  /** Read what came after the newest row. Raises `ApiError`. */
  async catchUp(): Promise<void> {
    const newest = this.prices.at(-1)?.timestamp ?? this.candles.at(-1)?.start;
    if (this.error || newest === undefined) return this.reload();
    const { signal } = this.loading;
    if (this.interval !== "PRICES") {
      this.changedSince = Math.min(this.changedSince, parse(newest));
      return this.readLastCandles();
    }
    const fresh = await readPrices(this.period, newest, { signal });
    signal.throwIfAborted();
    fresh.forEach((price) => insertRow(this.prices, price));
    this.onChange();
  }

  /** A price of the shown ticker that was just stored. */
  insert(price: Price): void {
    if (!this.choice || price.ticker !== this.choice.ticker || parse(price.timestamp) < this.period.from) return;
    if (this.isLoading) this.arrived.push(price);
    if (this.interval !== "PRICES") {
      if (this.sources) insertRow<Sourced>(this.sources, price);
      this.changedSince = Math.min(this.changedSince, parse(price.timestamp));
      this.readingCandles ||= window.setTimeout(() => this.readLastCandles(), CANDLES_EVERY);
      return;
    }
    const newest = newestOfGrid(this.prices);
    insertRow(this.prices, price);
    const isNext = newest === undefined || parse(price.timestamp) - parse(newest) === this.grid;
    // Anything but the next slot's price: something was missed or healed, here or there, so the period is read again.
    if (price.source !== "REQUESTED" && !isNext && price.timestamp !== newest) this.rereadSoon();
    this.onChange();
  }

  /** Drop what has left the period, and count it again when that was long enough ago. */
  async slide(): Promise<void> {
    const { period } = this;
    // Until it is counted again, what was counted stays too.
    const start = print(Math.min(period.from, this.counted?.from ?? Infinity));
    const isOver = (first?: { timestamp: string }) => first !== undefined && first.timestamp < start;
    if (isOver(this.prices[0])) this.prices = this.prices.filter(({ timestamp }) => timestamp >= start);
    if (isOver(this.sources?.[0])) this.sources = this.sources!.filter(({ timestamp }) => timestamp >= start);
    this.candles = this.candles.filter((candle) => parse(candle.start) + this.step > period.from);
    // A count that takes long is not asked for often.
    const every = Math.max(COVERAGE_EVERY, this.grid / 2, 20 * this.countingTook);
    if (this.isLoading || this.error || now() - this.countedAt < every) return;
    this.countedAt = now();
    try {
      await this.count(period, this.loading.signal);
      this.onChange();
    } catch (error) {
      if (!isAbort(error) && !(error instanceof ApiError)) throw error;
    }
  }

  /** How each price of the period came to be stored, where that is known. */
  get sourced(): Sourced[] | null {
    return this.interval === "PRICES" ? this.prices : (this.sources ?? null);
  }

  countSoon(): void {
    this.countedAt = 0;
  }

  private clear(): void {
    [this.prices, this.candles, this.sources, this.coverage, this.counted] = [[], [], undefined, null, null];
    this.beginning = undefined;
  }

  private readRows(period: Period, signal: AbortSignal): Promise<Price[] | Candle[]> {
    return this.interval === "PRICES"
      ? readPrices(period, null, { signal })
      : readCandles(period, this.interval, { signal });
  }

  private async count(period: Period, signal: AbortSignal): Promise<void> {
    const began = performance.now();
    const coverage = await readCoverage(period, { signal });
    signal.throwIfAborted();
    const took = performance.now() - began;
    if (this.beginning === undefined) {
      const beginning = await readBeginning(period, this.grid, coverage.expected, { signal });
      signal.throwIfAborted();
      this.beginning = beginning;
    }
    [this.coverage, this.counted] = [coverage, period];
    [this.countedAt, this.countingTook] = [now(), took];
  }

  private async loadSources(period: Period, signal: AbortSignal): Promise<void> {
    const count = this.candles.reduce((sum, { samples }) => sum + samples, 0);
    const sources = count > MOST_SOURCES ? null : await readSources(period, null, { signal });
    signal.throwIfAborted();
    this.sources = sources;
  }

  private rereadSoon(): void {
    this.rereading ||= window.setTimeout(() => {
      this.rereading = 0;
      if (this.isLoading) this.rereadSoon();
      else void this.reload();
    }, REREAD_AFTER);
  }

  private async readLastCandles(): Promise<void> {
    if (this.interval === "PRICES") return;
    const changed = { ...this.period, from: Math.min(this.changedSince, this.period.to) };
    [this.changedSince, this.readingCandles] = [Infinity, 0];
    try {
      const fresh = await readCandles(changed, this.interval, { signal: this.loading.signal });
      this.candles = mergeCandles(this.candles, fresh);
      this.onChange();
    } catch (error) {
      if (!isAbort(error) && !(error instanceof ApiError)) throw error;
    }
  }
}

function newestOfGrid(prices: Price[]): string | undefined {
  let last = prices.length - 1;
  while (prices[last]?.source === "REQUESTED") last -= 1;
  return prices[last]?.timestamp;
}
