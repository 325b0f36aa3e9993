/** The data of the shown period of one ticker: prices or candles, gaps, and the source of each price. */

import { ApiError, isAbort } from "../data/api";
import type { Candle, Coverage, Price, Source } from "../data/documents";
import { now, parse, print, SECOND } from "../text/time";
import { CANDLES, effective, type Interval, RANGES, type Resolved } from "./choice";
import { insertRow, mergeCandles, type Period, readBeginning, readCandles, readCoverage, readPrices, readSources } from "./rows";

export interface Sourced {
  timestamp: string;
  source: Source;
}

/** Candles do not say which prices were backfilled, so the page reads the sources of up to this many prices. */
const MAX_SOURCES = 50_000;
const COVERAGE_EVERY = 10 * SECOND;
const REREAD_AFTER = 2 * SECOND;
const CANDLES_EVERY = SECOND;

export class History {
  interval: Interval = "PRICES";
  prices: Price[] = [];
  candles: Candle[] = [];
  coverage: Coverage | null = null;
  /** `undefined`: being read; `null`: too many to read. */
  sources: Sourced[] | null | undefined;
  isLoading = false;
  error: ApiError | null = null;
  /** The period of `coverage`. */
  counted: Period | null = null;
  /** The first expected slot, as `readBeginning` returns it. */
  beginning: number | null | undefined;
  /** From slot to slot, in milliseconds. */
  grid = 0;

  private choice!: Resolved;
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

  /** Read the whole period. Until then the old rows stay if they have the same ticker and interval. */
  async load(choice: Resolved, grid: number): Promise<void> {
    this.loading.abort();
    this.loading = new AbortController();
    const asking = { signal: this.loading.signal };
    const interval = effective(choice, grid / SECOND);
    if (!this.choice || choice.ticker !== this.choice.ticker || interval !== this.interval) this.clear();
    // A longer period may contain the beginning.
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
      // Prices stored during the read may be missing from its answer.
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

  /** Read the rows after the newest one, unless another read begins meanwhile. Raises `ApiError`. */
  async catchUp(): Promise<void> {
    const newest = this.prices.at(-1)?.timestamp ?? this.candles.at(-1)?.start;
    if (this.error || newest === undefined) return this.reload();
    const { signal } = this.loading;
    if (this.interval !== "PRICES") {
      this.changedSince = Math.min(this.changedSince, parse(newest));
      return this.readLastCandles();
    }
    try {
      const fresh = await readPrices(this.period, newest, { signal });
      signal.throwIfAborted();
      fresh.forEach((price) => insertRow(this.prices, price));
      this.onChange();
    } catch (error) {
      if (!isAbort(error)) throw error;
    }
  }

  /** Add a price that was just stored, if the shown period contains it. */
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
    // A price that is not the next slot's means that slots were missed or healed, so read the period again.
    if (price.source !== "REQUESTED" && !isNext && price.timestamp !== newest) this.rereadSoon();
    this.onChange();
  }

  /** Drop the rows that have left the period, and count the coverage again if the last count is old. */
  async slide(): Promise<void> {
    const { period } = this;
    // Keep the counted rows until the next count.
    const start = print(Math.min(period.from, this.counted?.from ?? Infinity));
    const isOver = (first?: { timestamp: string }) => first !== undefined && first.timestamp < start;
    if (isOver(this.prices[0])) this.prices = this.prices.filter(({ timestamp }) => timestamp >= start);
    if (isOver(this.sources?.[0])) this.sources = this.sources!.filter(({ timestamp }) => timestamp >= start);
    this.candles = this.candles.filter((candle) => parse(candle.start) + this.step > period.from);
    // Count less often if a count takes long.
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

  /** The source of each price of the period, or `null` if unknown. */
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
    const sources = count > MAX_SOURCES ? null : await readSources(period, null, { signal });
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
