/** The chart. uPlot draws scales, axes and lines; `drawing.ts` and `cursor.ts` draw the rest. */

import "uplot/dist/uPlot.min.css";
import uPlot from "uplot";
import { SECOND } from "../text/time";
import { priceLabels, priceRange, timeLabels, widthOfPrices } from "./axes";
import { drawCandles, drawHoles, drawLonePrices, drawRequested, drawSources, type Palette, readPalette } from "./drawing";
import { EMPTY_SCENE, type Scene } from "./scene";
import { breaksBetween } from "./stretches";

const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const ASPECT = 0.42;
const MIN_HEIGHT = 230;
const MAX_HEIGHT = 400;

export class Chart {
  readonly plot: uPlot;
  scene = EMPTY_SCENE;
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
    return { width, height: Math.round(Math.min(MAX_HEIGHT, Math.max(MIN_HEIGHT, width * ASPECT))) };
  }

  private options(): uPlot.Options {
    const axis: uPlot.Axis = {
      font: FONT,
      stroke: () => this.palette.text,
      grid: { stroke: () => this.palette.grid, width: 1 },
      ticks: { show: false },
    };
    const prices = (splits: number[], increment: number) =>
      this.scene.items.length === 0 ? splits.map(() => "") : priceLabels(splits, increment);
    const outline: uPlot.Series = { paths: () => null, points: { show: false } };
    return {
      ...this.size,
      legend: { show: false },
      cursor: { show: false },
      padding: [12, 22, 0, 0],
      scales: {
        x: { range: () => [this.scene.period.from / SECOND, this.scene.period.to / SECOND] },
        y: { range: (_, min, max) => priceRange(min, max) },
      },
      axes: [
        { ...axis, space: 70, values: (_, splits, __, ___, increment) => splits.map(timeLabels(increment * SECOND)) },
        { ...axis, size: widthOfPrices, space: 44, values: (_, splits, __, ___, increment) => prices(splits, increment) },
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
            drawLonePrices(plot, this.scene, this.palette);
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
 * price belongs to the backfilled line.
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
