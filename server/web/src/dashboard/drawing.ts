/** What is drawn on the chart's canvas besides lines: holes, candles, requested prices, and where prices came from. */

import type uPlot from "uplot";
import type { Scene } from "./chart";
import type { Stretch } from "./stretches";
import { parse, SECOND } from "./time";

export interface Palette {
  text: string;
  grid: string;
  surface: string;
  observed: string;
  unsourced: string;
  backfilled: string;
  missing: string;
  up: string;
  down: string;
}

const NAMES = ["text", "grid", "surface", "observed", "unsourced", "backfilled", "missing", "up", "down"] as const;

/** The colours of the page's style sheet, for a canvas has no classes. */
export function readPalette(frame: HTMLElement): Palette {
  const style = getComputedStyle(frame);
  const colours = NAMES.map((name) => [name, style.getPropertyValue(`--chart-${name}`).trim()]);
  return Object.fromEntries(colours) as Palette;
}

const STRIP_HEIGHT = 6;
const NARROWEST = 2;

/** Where nothing is stored but should be: hatched over the whole height, however short it is. */
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

/** Along the bottom: observed full, backfilled dashed, missing left open. */
export function drawSources(plot: uPlot, scene: Scene, palette: Palette): void {
  const { items, holes, backfilled, begin, period } = scene;
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
    fill(backfilled, dashing(context, palette.backfilled, 6 * devicePixelRatio));
    fill(holes, hatching(context, palette.missing, 4 * devicePixelRatio));
  });
}

/** Hollow where the price rose, filled where it fell, dashed where a backfilled price is in it. */
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

/** A diamond for each price that somebody asked for. */
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

/** In canvas pixels; one that is narrower than can be seen is made as wide as can be. */
function spans(plot: uPlot, stretches: Stretch[]): { left: number; width: number }[] {
  const { min, max } = plot.scales.x!;
  return stretches
    .filter(({ from, to }) => to / SECOND > min! && from / SECOND < max!)
    .map(({ from, to }) => {
      const left = plot.valToPos(from / SECOND, "x", true);
      const width = plot.valToPos(to / SECOND, "x", true) - left;
      return { left, width: Math.max(NARROWEST * devicePixelRatio, width) };
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
