/** The chart as a table, for screen readers and for exact digits. */

import { reasonOf } from "../data/tickers";
import { counted, grouped } from "../text/decimal";
import { byId, element, setText } from "../text/elements";
import { localFull, parse, utc } from "../text/time";
import { SOURCES } from "./cursor";
import { breaksBetween, type Hole, type Item } from "./stretches";

const ROWS = 50;

/** UTC stands last, so that a narrow screen shows the price without scrolling. */
const HEADS = {
  price: ["Local time", "Price", "Source", "UTC"],
  candle: ["Local time", "Open", "High", "Low", "Close", "Prices", "UTC"],
};
const NUMBERS = new Set(["Price", "Open", "High", "Low", "Close", "Prices"]);

export class Table {
  private readonly details = byId<HTMLDetailsElement>("table");
  private readonly table = byId<HTMLTableElement>("rows");
  private readonly more = byId<HTMLButtonElement>("more");
  private rows = ROWS;
  private items: Item[] = [];
  private holes: Hole[] = [];

  constructor() {
    this.details.addEventListener("toggle", () => this.draw());
    this.more.addEventListener("click", () => {
      this.rows += ROWS;
      this.draw();
    });
  }

  show(items: Item[], holes: Hole[]): void {
    [this.items, this.holes] = [items, holes];
    this.draw();
  }

  /** Only while it is open, because most readers never open it. */
  private draw(): void {
    if (!this.details.open) return;
    const heads = HEADS[this.items[0]?.candle ? "candle" : "price"];
    this.drawHead(heads);
    const newest = this.items.slice(-this.rows).reverse();
    const rows: Row[] = [];
    newest.forEach((item, index) => {
      rows.push(rowOf(item));
      const older = newest[index + 1];
      if (!older || !breaksBetween(older, item, this.holes)) return;
      const between = this.holes.filter(({ from, to }) => to > older.at && from < item.at);
      rows.push(...between.reverse().map((hole) => missingRow(hole, heads.length)));
    });
    this.drawRows(rows);
    this.more.hidden = this.items.length <= this.rows;
    setText(this.table.caption!, `Newest first, ${newest.length} of ${counted(this.items.length, "row")}`);
  }

  private drawHead(heads: string[]): void {
    const head = this.table.tHead!;
    if (head.rows[0]?.cells.length === heads.length) return;
    const cells = heads.map((name) => element("th", { scope: "col", ...classOf(name) }, name));
    head.replaceChildren(element("tr", {}, ...cells));
  }

  /** Keep existing rows, so that a selection or a screen reader's position in them survives. */
  private drawRows(rows: Row[]): void {
    const body = this.table.tBodies[0]!;
    const wanted = new Set(rows.map(({ key }) => key));
    for (const row of [...body.rows]) if (!wanted.has(row.dataset.key!)) row.remove();
    rows.forEach(({ key, make }, index) => {
      const there = body.rows[index];
      if (there?.dataset.key === key) return;
      const made = make();
      made.dataset.key = key;
      body.insertBefore(made, there ?? null);
    });
  }
}

/** Made only if the table has no row with this key yet. */
interface Row {
  key: string;
  make: () => HTMLTableRowElement;
}

function rowOf({ price, candle, isBackfilled }: Item): Row {
  const timestamp = price?.timestamp ?? candle!.start;
  const heads = HEADS[candle ? "candle" : "price"];
  const cells = price
    ? [grouped(price.price), SOURCES[price.source]]
    : [candle!.open, candle!.high, candle!.low, candle!.close].map(grouped).concat(String(candle!.samples));
  const make = () => {
    const row = element(
      "tr",
      { "data-timestamp": timestamp },
      element("th", { scope: "row" }, localFull(parse(timestamp))),
      ...cells.map((text, index) => element("td", classOf(heads[index + 1]!), text)),
      element("td", {}, utc(timestamp)),
    );
    row.classList.toggle("backfilled", isBackfilled);
    return row;
  };
  return { key: [timestamp, isBackfilled, ...cells].join(), make };
}

function classOf(head: string): Record<string, string> {
  return NUMBERS.has(head) ? { class: "number" } : head === "Source" ? { class: "source" } : {};
}

function missingRow({ from, gap }: Hole, width: number): Row {
  const missing = `${gap.missing} missing: ${reasonOf(gap)}`;
  const make = () =>
    element(
      "tr",
      { class: "missing" },
      element("th", { scope: "row" }, localFull(from)),
      element("td", { class: "reason", colspan: String(width - 2) }, missing),
      element("td", {}, utc(gap.fromDt)),
    );
  return { key: [gap.fromDt, missing].join(), make };
}
