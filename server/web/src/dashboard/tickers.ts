/** What is known of each ticker: its newest price, what it is compared with, and why it is stale. */

import { ask } from "./api";
import { type Gap, type Price, type Ticker, pricesBefore, recentGaps, TICKERS } from "./documents";
import { DAY, HOUR, justAfter, MINUTE, now, parse, print, SECOND, setServerClock } from "./time";

export const SPANS = { "1 h": HOUR, "24 h": DAY } as const;
export type Span = keyof typeof SPANS;

export interface Known {
  name: string;
  interval: number;
  latest: Price | null;
  /** The price that stood when a span began; `null` where none did, `undefined` while nobody has asked. */
  before: Partial<Record<Span, Price | null>>;
  gap: Gap | null;
}

/** Two intervals without a price, as the API counts it. */
const STALE_INTERVALS = 2;
const ALIASES = 40;
const COMPARISONS_LAST = 30 * SECOND;
const GAPS_REACH = HOUR;
const SPAN_NAMES = Object.keys(SPANS) as Span[];

export class Tickers {
  readonly known = new Map<string, Known>();
  private comparedAt = 0;

  /** Read what is collected and how fresh it is. Raises `ApiError`, as the others do. */
  async refresh(): Promise<void> {
    const { tickers } = await ask<{ tickers: Ticker[] }>(TICKERS);
    const newest = tickers.find(({ lagSeconds }) => lagSeconds !== null);
    if (newest?.latest && newest.lagSeconds !== null) {
      setServerClock(parse(newest.latest.timestamp) + newest.lagSeconds * SECOND);
    }
    for (const { name, intervalSeconds, latest } of tickers) {
      const interval = intervalSeconds * SECOND;
      const known = this.known.get(name);
      if (known) known.interval = interval;
      else this.known.set(name, { name, interval, latest: null, before: {}, gap: null });
      if (latest) this.note(latest);
    }
  }

  /** A price that was stored. True when it is the ticker's newest. */
  note(price: Price): boolean {
    const known = this.known.get(price.ticker);
    if (!known || (known.latest && known.latest.timestamp >= price.timestamp)) return false;
    known.latest = price;
    known.gap = null;
    return true;
  }

  /** Read again what the newest prices are compared with; what was read lately is near enough. */
  async compare(): Promise<void> {
    if (now() - this.comparedAt < COMPARISONS_LAST) return;
    const wanted = this.all.flatMap(({ name, latest }) =>
      latest ? SPAN_NAMES.map((span) => ({ name, span, at: parse(latest.timestamp) - SPANS[span] })) : [],
    );
    if (wanted.length === 0) return;
    this.comparedAt = now();
    for (let start = 0; start < wanted.length; start += ALIASES) {
      const part = wanted.slice(start, start + ALIASES);
      const variables = part.flatMap(({ name, at }, n) => [[`t${n}`, name], [`b${n}`, justAfter(at)]]);
      const answer = await ask<Record<string, Price[]>>(pricesBefore(part.length), Object.fromEntries(variables));
      part.forEach(({ name, span, at }, n) => {
        const found = answer[`p${n}`]?.[0];
        const known = this.known.get(name)!;
        // A price that had long been old by then says nothing of that instant.
        const reach = Math.max(STALE_INTERVALS * known.interval, SPANS[span] / 12);
        known.before[span] = found && at - parse(found.timestamp) <= reach ? found : null;
      });
    }
  }

  /** Ask of stale tickers, and of those without any price, why. */
  async explain(): Promise<void> {
    const stale = this.all.filter((known) => isStale(known)).slice(0, ALIASES);
    if (stale.length === 0) return;
    const oldest = now() - GAPS_REACH;
    const variables = stale.flatMap(({ name, latest }, n) => [
      [`t${n}`, name],
      [`f${n}`, print(Math.max(oldest, latest ? parse(latest.timestamp) : 0))],
    ]);
    const toDt = print(now() + MINUTE);
    const answer = await ask<Record<string, { gaps: Gap[] }>>(recentGaps(stale.length), {
      toDt,
      ...Object.fromEntries(variables),
    });
    stale.forEach((known, n) => {
      known.gap = answer[`c${n}`]?.gaps.at(-1) ?? null;
    });
  }

  get all(): Known[] {
    return [...this.known.values()];
  }

  /**
   * The instant up to which every ticker's prices have been seen; those of a ticker that has been silent for long do
   * not hold it back, for they come after it. Before anything is known: a minute ago.
   */
  get seenUntil(): string {
    const seen = this.all.flatMap(({ latest }) => (latest ? [latest.timestamp] : []));
    const newest = seen.reduce((a, b) => (a > b ? a : b), print(now() - MINUTE));
    const oldest = print(parse(newest) - 10 * MINUTE);
    return seen.filter((timestamp) => timestamp >= oldest).reduce((a, b) => (a < b ? a : b), newest);
  }
}

export function age({ latest }: Known): number | null {
  return latest && Math.max(0, now() - parse(latest.timestamp));
}

export function isStale(known: Known): boolean {
  const milliseconds = age(known);
  return milliseconds === null || milliseconds > STALE_INTERVALS * known.interval;
}

const REASONS = {
  NOT_COLLECTED: "nothing was collecting it",
  EXCHANGE_ERROR: "the exchange failed",
  REJECTED_VALUE: "the exchange's value was refused",
  STORAGE_ERROR: "the storage did not take it",
};

export function reasonOf({ reason, detail }: Gap): string {
  return detail ? `${REASONS[reason]} (${detail})` : REASONS[reason];
}
