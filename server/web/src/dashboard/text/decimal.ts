/** Prices are exact decimals in plain notation, as strings. No shown price goes through a float. */

const integer = new Intl.NumberFormat("en-US");

/** `1 price`, `1,200 prices`. */
export function counted(count: number, noun: string): string {
  return `${integer.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** `87091.73` as `87,091.73`, with every digit. */
export function grouped(decimal: string): string {
  const [whole = "", fraction] = decimal.split(".");
  const groups = whole.replace(/\B(?=(\d{3})+$)/g, ",");
  return fraction === undefined ? groups : `${groups}.${fraction}`;
}

export interface Change {
  direction: "up" | "down" | "none";
  /** Exact, with its sign. */
  difference: string;
  /** With its sign, to two decimals; `null` if the earlier price is zero. */
  percent: string | null;
}

export function changeBetween(before: string, after: string): Change {
  const decimals = Math.max(decimalsOf(before), decimalsOf(after));
  const [from, to] = [scaled(before, decimals), scaled(after, decimals)];
  const difference = to - from;
  const direction = difference > 0n ? "up" : difference < 0n ? "down" : "none";
  const sign = { up: "+", down: "−", none: "±" }[direction];
  const size = difference < 0n ? -difference : difference;
  // In hundredths of a percent, rounded half away from zero.
  const hundredths = from > 0n ? (size * 20_000n + from) / (2n * from) : null;
  return {
    direction,
    difference: sign + grouped(plain(size, decimals)),
    percent: hundredths === null ? null : `${sign}${grouped(plain(hundredths, 2))} %`,
  };
}

function decimalsOf(decimal: string): number {
  return decimal.split(".")[1]?.length ?? 0;
}

function scaled(decimal: string, decimals: number): bigint {
  const [whole, fraction = ""] = decimal.split(".");
  return BigInt(whole + fraction.padEnd(decimals, "0"));
}

function plain(units: bigint, decimals: number): string {
  const digits = units.toString().padStart(decimals + 1, "0");
  return decimals === 0 ? digits : `${digits.slice(0, -decimals)}.${digits.slice(-decimals)}`;
}
