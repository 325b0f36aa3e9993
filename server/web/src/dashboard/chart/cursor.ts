/** The crosshair and its tooltip, moved by mouse, touch and arrow keys. */

import type { Source } from "../data/documents";
import { reasonOf } from "../data/tickers";
import { counted, grouped } from "../text/decimal";
import { breakable, element } from "../text/elements";
import { localFull, localTime, parse, SECOND, utc } from "../text/time";
import type { Chart } from "./chart";
import { type Hole, holeAt, type Item, nearest } from "./stretches";

export const SOURCES: Record<Source, string> = {
  SCHEDULED: "scheduled",
  REQUESTED: "requested",
  RECOVERED: "recovered, from the exchange's first trade in it",
  BACKFILLED: "backfilled, an average from the exchange's chart",
};

const PAGE = 10;

type Row = [name: string, value: string];

export class Cursor {
  private readonly line = element("div", { class: "crosshair", hidden: "" });
  private readonly dot = element("div", { class: "crosshair-dot", hidden: "" });
  private readonly tip = element("dl", { class: "tip", hidden: "" });
  /** The instant pointed at. It stays while the chart slides. */
  private at: number | null = null;

  constructor(
    private readonly chart: Chart,
    private readonly handle: HTMLElement,
  ) {
    const { over } = chart.plot;
    over.append(this.line, this.dot, this.tip);
    over.addEventListener("pointermove", (event) => this.pointAtPixel(event));
    over.addEventListener("pointerdown", (event) => this.pointAtPixel(event));
    over.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.clear());
    handle.addEventListener("keydown", (event) => this.press(event));
    handle.addEventListener("blur", () => this.clear());
    new ResizeObserver(() => this.update()).observe(over);
  }

  clear(): void {
    this.at = null;
    this.update();
  }

  /**
   * Draw it again after the chart. While the chart has the focus, the text for screen readers changes only with the
   * cursor, because every change is read aloud.
   */
  update(isMoved = false): void {
    const { items, holes } = this.chart.scene;
    const index = this.at === null ? -1 : nearest(items, this.at);
    const hole = this.at === null || isOn(items[index], this.at) ? null : holeAt(holes, this.at);
    const item = hole ? undefined : items[index];
    for (const part of [this.line, this.tip]) part.hidden = !item && !hole;
    this.dot.hidden = !item;
    const rows = hole ? rowsOfHole(hole) : item ? rowsOfItem(item) : [];
    if (isMoved || document.activeElement !== this.handle) this.tell(items, index, rows);
    if (item || hole) this.place(hole ? this.at! : item!.at, item, rows);
  }

  private tell(items: Item[], index: number, rows: Row[]): void {
    const last = Math.max(0, items.length - 1);
    this.handle.setAttribute("aria-valuemax", String(last));
    // Without a cursor the text describes the last point.
    this.handle.setAttribute("aria-valuenow", String(index < 0 ? last : index));
    const text = rows.map(([name, value]) => `${name}: ${value}`).join("; ");
    this.handle.setAttribute("aria-valuetext", text || summary(items));
  }

  private place(at: number, item: Item | undefined, rows: Row[]): void {
    const { plot } = this.chart;
    const [width, x] = [plot.over.clientWidth, plot.valToPos(at / SECOND, "x")];
    this.line.style.transform = `translateX(${x}px)`;
    const y = item ? plot.valToPos(Number(item.price?.price ?? item.candle!.close), "y") : Infinity;
    if (item) this.dot.style.transform = `translate(${x}px, ${y}px)`;
    this.tip.classList.toggle("low", y < plot.over.clientHeight / 2);
    this.tip.replaceChildren(...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, ...breakable(value))]));
    const room = width - this.tip.offsetWidth;
    const left = x > width / 2 ? x - this.tip.offsetWidth - 14 : x + 14;
    this.tip.style.transform = `translateX(${Math.max(0, Math.min(room, left))}px)`;
  }

  private pointAtPixel(event: PointerEvent): void {
    const { plot } = this.chart;
    this.at = plot.posToVal(event.clientX - plot.over.getBoundingClientRect().left, "x") * SECOND;
    this.update();
  }

  private press(event: KeyboardEvent): void {
    const { items } = this.chart.scene;
    const last = items.length - 1;
    const index = this.at === null ? last : nearest(items, this.at);
    const wanted: Record<string, number> = {
      ArrowLeft: this.at === null ? last : index - 1,
      ArrowDown: index - 1,
      ArrowRight: index + 1,
      ArrowUp: index + 1,
      PageDown: index - PAGE,
      PageUp: index + PAGE,
      Home: 0,
      End: last,
    };
    if (event.key === "Escape") this.clear();
    const next = wanted[event.key];
    if (next === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.at = items[Math.max(0, Math.min(last, next))]?.at ?? null;
    this.update(true);
  }
}

/** A candle covers its whole length. A price inside a gap (a requested one) covers one instant, which only the keyboard hits. */
function isOn(item: Item | undefined, at: number): boolean {
  return item !== undefined && (item.candle ? item.from <= at && at < item.to : item.at === at);
}

function rowsOfItem({ price, candle, isBackfilled, from, to }: Item): Row[] {
  if (price) {
    return [
      ["Price", grouped(price.price)],
      ["Local", localFull(parse(price.timestamp))],
      ["UTC", utc(price.timestamp)],
      ["Source", SOURCES[price.source]],
    ];
  }
  if (!candle) return [];
  return [
    ["Open", grouped(candle.open)],
    ["High", grouped(candle.high)],
    ["Low", grouped(candle.low)],
    ["Close", grouped(candle.close)],
    ["Local", `${localFull(from)} – ${localTime(to)}`],
    ["UTC", utc(candle.start)],
    ["Prices", `${candle.samples}${isBackfilled ? ", some backfilled" : ""}${candle.complete ? "" : ", not complete"}`],
  ];
}

function rowsOfHole({ from, to, gap }: Hole): Row[] {
  return [
    ["Missing", counted(gap.missing, "price")],
    ["Local", `${localFull(from)} – ${localTime(to)}`],
    ["UTC", utc(gap.fromDt)],
    ["Why", reasonOf(gap)],
  ];
}

function summary(items: Item[]): string {
  const last = items.at(-1);
  if (!last) return "No points";
  const value = last.price?.price ?? last.candle!.close;
  return `${counted(items.length, "point")}; the last is ${grouped(value)} at ${localFull(last.at)}`;
}
