/** The chart: uPlot for scales, axes and lines; what it does not know of is in `drawing.ts` and `cursor.ts`. */

import "uplot/dist/uPlot.min.css";
import uPlot from "uplot";
import type { Form } from "./choice";
import { drawCandles, drawHoles, drawRequested, drawSources, type Palette, readPalette } from "./drawing";
import type { Price } from "./documents";
import { breaksBetween, type Hole, type Item, type Stretch } from "./stretches";
import { DAY, localDay, localMinute, localTime, MINUTE, SECOND } from "./time";

/** One period, ready to be drawn. */
export interface Scene {
  form: Form;
  period: Stretch;
  items: Item[];
  holes: Hole[];
  backfilled: Stretch[];
  /** The first row's instant: of what lies before it in its candle, and of the period, there is nothing. */
  begin: number;
  requested: Price[];
  /** Whether backfilled prices are told apart. */
  isSourced: boolean;
}

const EMPTY: Scene = {
  form: "line",
  period: { from: 0, to: 1 },
  items: [],
  holes: [],
  backfilled: [],
  begin: 0,
  requested: [],
  isSourced: true,
};
const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const ASPECT = 0.42;
const HEIGHTS = { least: 230, most: 400 };

export class Chart {
  readonly plot: uPlot;
  scene = EMPTY;
  private palette: Palette;

  constructor(private readonly frame: HTMLElement) {
    this.palette = readPalette(frame);
    this.plot = new uPlot(this.options(), [[], [], [], [], []], frame);
    new ResizeObserver(() => this.plot.setSize(this.size)).observe(frame);
    for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
      matchMedia(query).addEventListener("change", () => {
        this.palette = readPalette(frame);
        this.plot.redraw(false);
      });
    }
  }

  show(scene: Scene): void {
    this.scene = scene;
    this.plot.batch(() => {
      this.plot.setData(dataOf(scene));
      this.plot.setScale("x", { min: scene.period.from / SECOND, max: scene.period.to / SECOND });
    });
  }

  private get size(): { width: number; height: number } {
    const width = Math.max(200, this.frame.clientWidth);
    return { width, height: Math.round(Math.min(HEIGHTS.most, Math.max(HEIGHTS.least, width * ASPECT))) };
  }

  /** The axis' labels; none where there is nothing to measure. */
  private prices(splits: number[], increment: number): string[] {
    if (this.scene.items.length === 0) return splits.map(() => "");
    const decimals = [0, 1, 2, 3, 4, 5, 6, 7].find((count) => Number.isInteger(+(increment * 10 ** count).toFixed(6))) ?? 8;
    const format = new Intl.NumberFormat("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
    return splits.map((split) => format.format(split));
  }

  private options(): uPlot.Options {
    const axis: uPlot.Axis = {
      font: FONT,
      stroke: () => this.palette.text,
      grid: { stroke: () => this.palette.grid, width: 1 },
      ticks: { show: false },
    };
    const outline: uPlot.Series = { paths: () => null, points: { show: false } };
    return {
      ...this.size,
      legend: { show: false },
      cursor: { show: false },
      padding: [12, 22, 0, 0],
      scales: {
        x: { range: () => [this.scene.period.from / SECOND, this.scene.period.to / SECOND] },
        y: { range: (_, min, max) => (min === null ? [0, 1] : uPlot.rangeNum(min, max, 0.12, true)) },
      },
      axes: [
        { ...axis, space: 70, values: (_, splits, __, ___, increment) => splits.map(timeLabels(increment * SECOND)) },
        { ...axis, size: widthOfPrices, space: 44, values: (_, splits, __, ___, increment) => this.prices(splits, increment) },
      ],
      series: [
        {},
        { stroke: () => this.palette.backfilled, width: 2, dash: [4, 4], points: { show: false } },
        { stroke: () => this.palette[this.scene.isSourced ? "observed" : "unsourced"], width: 2, points: { show: false } },
        outline,
        outline,
      ],
      hooks: {
        drawAxes: [(plot) => drawHoles(plot, this.scene, this.palette)],
        draw: [
          (plot) => {
            drawCandles(plot, this.scene, this.palette);
            drawRequested(plot, this.scene, this.palette);
            drawSources(plot, this.scene, this.palette);
          },
        ],
      },
    };
  }
}

/**
 * The time axis, the backfilled line, the observed line, highs and lows. A segment between an observed and a backfilled
 * price belongs to the backfilled line. Floats are exact enough for pixels, and only pixels are made of these.
 */
function dataOf({ form, items, holes }: Scene): uPlot.AlignedData {
  const [times, backfilled, observed, highs, lows]: (number | null)[][] = [[], [], [], [], []];
  items.forEach((item, index) => {
    const before = items[index - 1];
    const after = items[index + 1];
    const isCut = before !== undefined && breaksBetween(before, item, holes);
    if (isCut) {
      times!.push((before.at + item.at) / 2 / SECOND);
      for (const values of [backfilled, observed, highs, lows]) values!.push(null);
    }
    const joins = (!isCut && before?.isBackfilled) || (after?.isBackfilled && !breaksBetween(item, after, holes));
    const value = form === "line" ? Number(item.price?.price ?? item.candle!.close) : null;
    times!.push(item.at / SECOND);
    backfilled!.push(item.isBackfilled || joins ? value : null);
    observed!.push(item.isBackfilled ? null : value);
    highs!.push(form === "candles" ? Number(item.candle!.high) : null);
    lows!.push(form === "candles" ? Number(item.candle!.low) : null);
  });
  return [times, backfilled, observed, highs, lows] as uPlot.AlignedData;
}

/** Hours and minutes, the day below where it changes. */
function timeLabels(increment: number): (split: number) => string {
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

function widthOfPrices(_: uPlot, labels: string[] | null): number {
  const longest = Math.max(4, ...(labels ?? []).map((label) => label.length));
  return 16 + longest * 7;
}
