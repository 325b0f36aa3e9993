/** Labels and range of the chart's axes. Prices are floats here, which is exact enough for pixels and axis labels. */

import uPlot from "uplot";
import { DAY, localDay, localMinute, localTime, MINUTE, SECOND } from "../text/time";

const LONGEST_LABEL = 12;
/** Digits that a float holds. */
const FLOAT_DIGITS = 15;
const MAX_DECIMALS = 18;
const PADDING = 0.12;
/** Height of the axis around prices that are all the same, as a fraction of the price. */
const FLAT_HEIGHT = 0.002;

/** The price axis: the prices with a margin. A single price, or a flat line, gets a narrow range around it. */
export function priceRange(min: number | null, max: number | null): uPlot.Range.MinMax {
  if (min === null || max === null) return [0, 1];
  const isFlat = max - min <= Math.abs(max) * 10 ** -FLOAT_DIGITS;
  if (!isFlat) return uPlot.rangeNum(min, max, PADDING, true);
  const margin = (Math.abs(max) * FLAT_HEIGHT) / 2 || 1;
  return [max - margin, max + margin];
}

/** As many decimals as the increment needs. Labels too long for a narrow screen are in scientific notation. */
export function priceLabels(splits: number[], increment: number): string[] {
  const decimals = Math.max(0, Math.min(MAX_DECIMALS, decimalsOf(increment)));
  const plain = new Intl.NumberFormat("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  const labels = splits.map((split) => plain.format(split));
  if (labels.every((label) => label.length <= LONGEST_LABEL)) return labels;
  const largest = Math.max(...splits.map(Math.abs));
  const digits = Math.ceil(Math.log10(largest / increment)) + 2;
  const scientific = new Intl.NumberFormat("en-US", {
    notation: "scientific",
    maximumSignificantDigits: Math.max(1, Math.min(FLOAT_DIGITS, digits)),
  });
  return splits.map((split) => (split === 0 ? "0" : scientific.format(split)));
}

/** uPlot's increments are 1, 2, 2.5 or 5 times a power of ten. */
function decimalsOf(increment: number): number {
  const exponent = Math.floor(Math.log10(increment) + 1e-9);
  const mantissa = increment / 10 ** exponent;
  return Math.abs(mantissa - 2.5) < 0.01 ? 1 - exponent : -exponent;
}

export function widthOfPrices(_: uPlot, labels: string[] | null): number {
  const longest = Math.max(4, ...(labels ?? []).map((label) => label.length));
  return 16 + longest * 7;
}

/** Hours and minutes, with the day below the first label of each day. */
export function timeLabels(increment: number): (split: number) => string {
  let day = "";
  return (split) => {
    const instant = split * SECOND;
    const today = localDay(instant);
    if (increment >= DAY) return today;
    const time = increment >= MINUTE ? localMinute(instant) : localTime(instant);
    const isNew = today !== day;
    day = today;
    return isNew ? `${time}\n${today}` : time;
  };
}
