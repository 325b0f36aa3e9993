/** What the chart shows: ticker, range, interval, line or candles. It is kept in the page's address. */

export const RANGES = {
  "15m": { seconds: 900, label: "15 min" },
  "1h": { seconds: 3600, label: "1 h" },
  "6h": { seconds: 21_600, label: "6 h" },
  "24h": { seconds: 86_400, label: "24 h" },
  "7d": { seconds: 604_800, label: "7 d" },
  "30d": { seconds: 2_592_000, label: "30 d" },
  "1y": { seconds: 31_536_000, label: "1 y" },
} as const;

export const CANDLES = {
  ONE_MINUTE: { seconds: 60, label: "1 min" },
  FIVE_MINUTES: { seconds: 300, label: "5 min" },
  FIFTEEN_MINUTES: { seconds: 900, label: "15 min" },
  ONE_HOUR: { seconds: 3600, label: "1 h" },
  FOUR_HOURS: { seconds: 14_400, label: "4 h" },
  ONE_DAY: { seconds: 86_400, label: "1 day" },
} as const;

export type Range = keyof typeof RANGES;
export type CandleInterval = keyof typeof CANDLES;
/** `PRICES`: every price as it is stored. */
export type Interval = CandleInterval | "PRICES";
export type Form = "line" | "candles";

export interface Choice {
  ticker: string;
  range: Range;
  interval: Interval | "AUTO";
  form: Form;
}

const MOST_PRICES = 25_000;
const MOST_PRICES_UNASKED = 4000;
const MOST_CANDLES = 3000;
const MOST_CANDLES_UNASKED = { line: 1500, candles: 200 };

/** The intervals that a range can be drawn at, finest first, given the seconds from slot to slot. */
export function offered(range: Range, form: Form, grid: number): Interval[] {
  const { seconds } = RANGES[range];
  const candles = candleIntervals().filter((name) => {
    const count = seconds / CANDLES[name].seconds;
    return CANDLES[name].seconds >= grid && count >= 3 && count <= MOST_CANDLES;
  });
  return form === "line" && seconds / grid <= MOST_PRICES ? ["PRICES", ...candles] : candles;
}

/** The interval drawn: the one chosen where it is offered, else the finest that is quick to read and to look at. */
export function effective({ range, interval, form }: Choice, grid: number): Interval {
  const intervals = offered(range, form, grid);
  if (interval !== "AUTO" && intervals.includes(interval)) return interval;
  const { seconds } = RANGES[range];
  const isLight = (name: Interval) =>
    name === "PRICES"
      ? seconds / grid <= MOST_PRICES_UNASKED
      : seconds / CANDLES[name].seconds <= MOST_CANDLES_UNASKED[form];
  return intervals.find(isLight) ?? intervals.at(-1) ?? "ONE_MINUTE";
}

export function labelOf(interval: Interval): string {
  return interval === "PRICES" ? "each price" : CANDLES[interval].label;
}

export function choiceOfAddress(): Choice {
  const wanted = new URLSearchParams(location.search);
  const range = wanted.get("range") ?? "";
  const interval = wanted.get("interval") ?? "";
  return {
    ticker: wanted.get("ticker") ?? "",
    range: range in RANGES ? (range as Range) : "1h",
    interval: interval in CANDLES || interval === "PRICES" ? (interval as Interval) : "AUTO",
    form: wanted.get("form") === "candles" ? "candles" : "line",
  };
}

export function keepInAddress(choice: Choice): void {
  const address = new URL(location.href);
  for (const [name, value] of Object.entries(choice)) address.searchParams.set(name, value);
  history.replaceState(null, "", address);
}

function candleIntervals(): CandleInterval[] {
  return Object.keys(CANDLES) as CandleInterval[];
}
