/** The state of each ticker: its newest price, the earlier prices to compare it with, and why it is stale. */

import { DAY, HOUR, justAfter, MINUTE, now, parse, print, SECOND, setServerClock } from "../text/time";
import { ask } from "./api";
import { type Gap, type Price, type Ticker, openPrices, recentGaps, TICKERS } from "./documents";
import { readUnknownIndices } from "./readiness";

export const SPANS = { "1 h": HOUR, "24 h": DAY } as const;
export type Span = keyof typeof SPANS;

export interface Known {
  name: string;
  interval: number;
  latest: Price | null;
  /** The first price of each span; `null` if it is too late in it, `undefined` until it is read. */
  before: Partial<Record<Span, Price | null>>;
  /** How far back the history is being filled; null when it is there. */
  fillingTo: string | null;
  /** The newest gap of a stale ticker. */
  gap: Gap | null;
  /** Similar names, if the exchange does not know this index; else `null`. */
  near: string[] | null;
}

/** A ticker is stale after two intervals without a price, as in the API. */
const STALE_INTERVALS = 2;
const ALIASES = 40;
const COMPARISONS_LAST = 30 * SECOND;
const GAPS_REACH = HOUR;
const SPAN_NAMES = Object.keys(SPANS) as Span[];

export class Tickers {
  readonly known = new Map<string, Known>();
  private comparedAt = 0;

  /** Read the tickers and their newest prices. Raises `ApiError`, as the other methods do. */
  async refresh(): Promise<void> {
    const { tickers } = await ask<{ tickers: Ticker[] }>(TICKERS);
    const newest = tickers.find(({ lagSeconds }) => lagSeconds !== null);
    if (newest?.latest && newest.lagSeconds !== null) {
      setServerClock(parse(newest.latest.timestamp) + newest.lagSeconds * SECOND);
    }
    for (const { name, intervalSeconds, latest, fillingTo } of tickers) {
      const interval = intervalSeconds * SECOND;
      const known = this.known.get(name);
      if (known) [known.interval, known.fillingTo] = [interval, fillingTo];
      else this.known.set(name, { name, interval, latest: null, before: {}, fillingTo, gap: null, near: null });
      if (latest) this.note(latest);
    }
  }

  /** Add a stored price. True if it is the ticker's newest. */
  note(price: Price): boolean {
    const known = this.known.get(price.ticker);
    if (!known || (known.latest && known.latest.timestamp >= price.timestamp)) return false;
    known.latest = price;
    [known.gap, known.near] = [null, null];
    return true;
  }

  /** Read the earlier prices to compare with, unless they were read lately. */
  async compare(): Promise<void> {
    if (now() - this.comparedAt < COMPARISONS_LAST) return;
    const wanted = this.all.flatMap(({ name, latest }) =>
      latest ? SPAN_NAMES.map((span) => ({ name, span, to: parse(latest.timestamp) })) : [],
    );
    if (wanted.length === 0) return;
    this.comparedAt = now();
    for (let start = 0; start < wanted.length; start += ALIASES) {
      const part = wanted.slice(start, start + ALIASES);
      const variables = part.flatMap(({ name, span, to }, n) => [
        [`t${n}`, name],
        [`a${n}`, print(to - SPANS[span])],
        [`b${n}`, justAfter(to)],
      ]);
      const answer = await ask<Record<string, { open: Price | null }>>(openPrices(part.length), Object.fromEntries(variables));
      part.forEach(({ name, span, to }, n) => {
        const open = answer[`s${n}`]?.open;
        const known = this.known.get(name)!;
        // A price from long after the span's beginning is no basis for comparison.
        const reach = Math.max(STALE_INTERVALS * known.interval, SPANS[span] / 12);
        known.before[span] = open && parse(open.timestamp) - (to - SPANS[span]) <= reach ? open : null;
      });
    }
  }

  /** Read why tickers are stale or have no price. */
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
    await this.findUnknown(stale.filter(({ latest, gap }) => !latest || gap?.reason === "EXCHANGE_ERROR"));
  }

  /** Mark the tickers that do not exist at the exchange, a fault of the configuration. */
  private async findUnknown(suspects: Known[]): Promise<void> {
    if (suspects.length === 0) return;
    const unknown = await readUnknownIndices(suspects.map(({ name }) => name));
    for (const known of suspects) known.near = unknown.find(({ name }) => name === known.name)?.near ?? null;
  }

  get all(): Known[] {
    return [...this.known.values()];
  }

  /**
   * The instant up to which the page has every ticker's prices. Tickers that have been silent for ten minutes do not
   * count, because their next prices come later anyway. Before the first price: a minute ago.
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
  NOT_COLLECTED: "no worker was collecting it",
  EXCHANGE_ERROR: "the exchange failed",
  REJECTED_VALUE: "the exchange's value was rejected",
  STORAGE_ERROR: "the database did not store it",
};

export function reasonOf({ reason, detail }: Gap): string {
  return detail ? `${REASONS[reason]} (${detail})` : REASONS[reason];
}

/** Why an index that does not exist has no prices, and what to do. */
export function unknownWords({ name, near }: Known): string {
  const similar = near?.length ? ` Similar names: ${near.join(", ")}.` : "";
  return `${name} does not exist at the exchange. Correct it in TICKERS.${similar}`;
}
