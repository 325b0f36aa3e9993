/** Draws on the chart's canvas what uPlot does not: gaps, candles, single points, requested prices, and the strip of sources. */

import type uPlot from "uplot";
import { parse, SECOND } from "../text/time";
import type { Scene } from "./scene";
import { breaksBetween, type Item, type Stretch } from "./stretches";

export interface Palette {
  text: string;
  grid: string;
  surface: string;
  observed: string;
  recovered: string;
  unsourced: string;
  backfilled: string;
  missing: string;
  up: string;
  down: string;
}

const NAMES = ["text", "grid", "surface", "observed", "recovered", "unsourced", "backfilled", "missing", "up", "down"] as const;

/** Reads the colours from the style sheet, because a canvas has no classes. */
export function readPalette(frame: HTMLElement): Palette {
  const style = getComputedStyle(frame);
  const colours = NAMES.map((name) => [name, style.getPropertyValue(`--chart-${name}`).trim()]);
  return Object.fromEntries(colours) as Palette;
}

const STRIP_HEIGHT = 6;
/** In CSS pixels, so that the shortest gap is still visible. */
const MIN_WIDTH = 2;
const DOT_RADIUS = 3.5;

/** Missing slots, hatched over the whole height. */
export function drawHoles(plot: uPlot, { holes }: Scene, palette: Palette): void {
  inside(plot, (context) => {
    const hatched = hatching(context, palette.missing, 7 * devicePixelRatio);
    for (const { left, width } of spans(plot, holes)) {
      for (const [style, alpha] of [[palette.missing, 0.18], [hatched, 1]] as const) {
        [context.fillStyle, context.globalAlpha] = [style, alpha];
        context.fillRect(left, plot.bbox.top, width, plot.bbox.height);
      }
    }
  });
}

/** The strip along the bottom: observed and recovered solid, backfilled dashed, missing hatched. */
export function drawSources(plot: uPlot, scene: Scene, palette: Palette): void {
  const { items, holes, recovered, backfilled, begin, period } = scene;
  const last = items.at(-1);
  if (!last) return;
  const height = STRIP_HEIGHT * devicePixelRatio;
  const top = plot.bbox.top + plot.bbox.height - height;
  inside(plot, (context) => {
    const fill = (stretches: Stretch[], style: string | CanvasPattern) => {
      for (const { left, width } of spans(plot, stretches)) {
        context.fillStyle = palette.surface;
        context.fillRect(left, top, width, height);
        context.fillStyle = style;
        context.fillRect(left, top, width, height);
      }
    };
    fill([{ from: begin, to: Math.min(last.to, period.to) }], palette[scene.isSourced ? "observed" : "unsourced"]);
    fill(recovered, palette.recovered);
    fill(backfilled, dashing(context, palette.backfilled, 6 * devicePixelRatio));
    fill(holes, hatching(context, palette.missing, 4 * devicePixelRatio));
  });
}

/** Hollow if the price rose, filled if it fell, dashed if the candle contains a backfilled price. */
export function drawCandles(plot: uPlot, { form, items }: Scene, palette: Palette): void {
  if (form !== "candles") return;
  inside(plot, (context) => {
    for (const { candle, from, to, at, isBackfilled } of items) {
      if (!candle) continue;
      const [open, high, low, close] = [candle.open, candle.high, candle.low, candle.close].map((price) =>
        plot.valToPos(Number(price), "y", true),
      ) as [number, number, number, number];
      const [left, right, middle] = [from, to, at].map((one) => plot.valToPos(one / SECOND, "x", true)) as [number, number, number];
      const width = Math.max(1, Math.min((right - left) * 0.7, 18 * devicePixelRatio));
      const colour = close <= open ? palette.up : palette.down; // the axis counts downwards
      context.strokeStyle = context.fillStyle = colour;
      context.lineWidth = devicePixelRatio * (width < 4 ? 1 : 1.5);
      context.setLineDash(isBackfilled ? [3 * devicePixelRatio, 2 * devicePixelRatio] : []);
      const [top, bottom] = [Math.min(open, close), Math.max(open, close)];
      line(context, middle, high, middle, top);
      line(context, middle, bottom, middle, low);
      const body: [number, number, number, number] = [middle - width / 2, top, width, Math.max(1, bottom - top)];
      if (close > open && !isBackfilled) context.fillRect(...body);
      if (close > open && isBackfilled) {
        context.globalAlpha = 0.35;
        context.fillRect(...body);
        context.globalAlpha = 1;
      }
      context.strokeRect(...body);
    }
  });
}

/** A dot for each price without neighbours, because a line needs two. Hollow if backfilled. */
export function drawLonePrices(plot: uPlot, scene: Scene, palette: Palette): void {
  const { form, items, holes } = scene;
  if (form !== "line") return;
  const joins = (a: Item | undefined, b: Item | undefined) => a && b && !breaksBetween(a, b, holes);
  inside(plot, (context) => {
    context.lineWidth = 2 * devicePixelRatio;
    items.forEach((item, index) => {
      if (item.price?.source === "REQUESTED") return;
      if (joins(items[index - 1], item) || joins(item, items[index + 1])) return;
      const value = Number(item.price?.price ?? item.candle!.close);
      const [x, y] = [plot.valToPos(item.at / SECOND, "x", true), plot.valToPos(value, "y", true)];
      const colour = palette[item.isBackfilled ? "backfilled" : scene.isSourced ? "observed" : "unsourced"];
      [context.strokeStyle, context.fillStyle] = [colour, item.isBackfilled ? palette.surface : colour];
      context.beginPath();
      context.arc(x, y, DOT_RADIUS * devicePixelRatio, 0, 2 * Math.PI);
      context.fill();
      context.stroke();
    });
  });
}

/** A diamond for each requested price. */
export function drawRequested(plot: uPlot, { form, requested }: Scene, palette: Palette): void {
  if (form !== "line") return;
  const size = 4.5 * devicePixelRatio;
  inside(plot, (context) => {
    [context.fillStyle, context.strokeStyle, context.lineWidth] = [palette.surface, palette.observed, 1.5 * devicePixelRatio];
    for (const { timestamp, price } of requested) {
      const [x, y] = [plot.valToPos(parse(timestamp) / SECOND, "x", true), plot.valToPos(Number(price), "y", true)];
      context.beginPath();
      context.moveTo(x, y - size);
      context.lineTo(x + size, y);
      context.lineTo(x, y + size);
      context.lineTo(x - size, y);
      context.closePath();
      context.fill();
      context.stroke();
    }
  });
}

function inside(plot: uPlot, draw: (context: CanvasRenderingContext2D) => void): void {
  const { left, top, width, height } = plot.bbox;
  plot.ctx.save();
  plot.ctx.beginPath();
  plot.ctx.rect(left, top, width, height);
  plot.ctx.clip();
  draw(plot.ctx);
  plot.ctx.restore();
}

/** In canvas pixels, none narrower than `MIN_WIDTH`. */
function spans(plot: uPlot, stretches: Stretch[]): { left: number; width: number }[] {
  const { min, max } = plot.scales.x!;
  return stretches
    .filter(({ from, to }) => to / SECOND > min! && from / SECOND < max!)
    .map(({ from, to }) => {
      const left = plot.valToPos(from / SECOND, "x", true);
      const width = plot.valToPos(to / SECOND, "x", true) - left;
      return { left, width: Math.max(MIN_WIDTH * devicePixelRatio, width) };
    });
}

function line(context: CanvasRenderingContext2D, x1: number, y1: number, x2: number, y2: number): void {
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}

function hatching(context: CanvasRenderingContext2D, colour: string, size: number): CanvasPattern {
  return pattern(context, size, (tile) => {
    tile.strokeStyle = colour;
    tile.lineWidth = devicePixelRatio;
    for (const offset of [-size, 0, size]) line(tile, offset, size, offset + size, 0);
  });
}

function dashing(context: CanvasRenderingContext2D, colour: string, size: number): CanvasPattern {
  return pattern(context, size, (tile) => {
    tile.fillStyle = colour;
    tile.fillRect(0, 0, size * 0.6, size);
  });
}

function pattern(
  context: CanvasRenderingContext2D,
  size: number,
  draw: (tile: CanvasRenderingContext2D) => void,
): CanvasPattern {
  const tile = document.createElement("canvas");
  tile.width = tile.height = Math.round(size);
  draw(tile.getContext("2d")!);
  return context.createPattern(tile, "repeat")!;
}
