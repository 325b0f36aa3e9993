/** What the chart shows: ticker, range, interval, line or candles. The page's address keeps it. */

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
/** `PRICES`: each stored price. */
export type Interval = CandleInterval | "PRICES";
export type Form = "line" | "candles";

/** `AUTO` follows the ticker's schedule. */
export interface Choice {
  ticker: string;
  range: Range | "AUTO";
  interval: Interval | "AUTO";
  form: Form;
}

/** A choice whose range is known. */
export interface Resolved extends Choice {
  range: Range;
}

/** The automatic range is at least an hour, and long enough for a line. */
const MIN_AUTO_SECONDS = 3600;
const MIN_AUTO_PRICES = 24;

const MAX_PRICES = 25_000;
const MAX_AUTO_PRICES = 4000;
const MAX_CANDLES = 3000;
const MAX_AUTO_CANDLES = { line: 1500, candles: 200 };
const MIN_CANDLES = 3;

/** `grid`: seconds from slot to slot, here and below. */
export function resolve(choice: Choice, grid: number): Resolved {
  const { range } = choice;
  return { ...choice, range: range === "AUTO" ? automaticRange(grid) : range };
}

function automaticRange(grid: number): Range {
  const wanted = Math.max(MIN_AUTO_SECONDS, MIN_AUTO_PRICES * grid);
  const ranges = Object.keys(RANGES) as Range[];
  return ranges.find((range) => RANGES[range].seconds >= wanted) ?? ranges.at(-1)!;
}

/** The intervals that a range can be drawn at, finest first. */
export function offered(range: Range, form: Form, grid: number): Interval[] {
  const { seconds } = RANGES[range];
  const candles = candleIntervals().filter((name) => {
    const count = seconds / CANDLES[name].seconds;
    return CANDLES[name].seconds >= grid && count >= MIN_CANDLES && count <= MAX_CANDLES;
  });
  return form === "line" && seconds / grid <= MAX_PRICES ? ["PRICES", ...candles] : candles;
}

/** The interval to draw: the chosen one if the range offers it, else the finest that is quick to read and to draw. */
export function effective({ range, interval, form }: Resolved, grid: number): Interval {
  const intervals = offered(range, form, grid);
  if (interval !== "AUTO" && intervals.includes(interval)) return interval;
  const { seconds } = RANGES[range];
  const isLight = (name: Interval) =>
    name === "PRICES"
      ? seconds / grid <= MAX_AUTO_PRICES
      : seconds / CANDLES[name].seconds <= MAX_AUTO_CANDLES[form];
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
    range: range in RANGES ? (range as Range) : "AUTO",
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
