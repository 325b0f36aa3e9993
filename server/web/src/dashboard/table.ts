/** What the chart shows, as a table: for those who cannot see it, and for those who want the digits. */

import { SOURCES } from "./cursor";
import { grouped } from "./decimal";
import { byId, element, setText } from "./elements";
import { breaksBetween, type Hole, type Item } from "./stretches";
import { reasonOf } from "./tickers";
import { localFull, parse, utc } from "./time";

const ROWS = 50;

const HEADS = {
  price: ["Local time", "UTC", "Price", "Source"],
  candle: ["Local time", "UTC", "Open", "High", "Low", "Close", "Prices"],
};

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

  /** Only while it is open: most readers never do. */
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
    setText(this.table.caption!, `Newest first, ${newest.length} of ${this.items.length}`);
  }

  private drawHead(heads: string[]): void {
    const head = this.table.tHead!;
    if (head.rows[0]?.cells.length === heads.length) return;
    head.replaceChildren(element("tr", {}, ...heads.map((name) => element("th", { scope: "col" }, name))));
  }

  /** Rows that are there already stay, so that whoever reads them, or has marked some, is not disturbed. */
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

/** A row that need not be made where one with its key is there. */
interface Row {
  key: string;
  make: () => HTMLTableRowElement;
}

function rowOf({ price, candle, isBackfilled }: Item): Row {
  const timestamp = price?.timestamp ?? candle!.start;
  const cells = price
    ? [grouped(price.price), SOURCES[price.source]]
    : [candle!.open, candle!.high, candle!.low, candle!.close].map(grouped).concat(String(candle!.samples));
  const make = () => {
    const row = element(
      "tr",
      { "data-timestamp": timestamp },
      element("th", { scope: "row" }, localFull(parse(timestamp))),
      element("td", {}, utc(timestamp)),
      ...cells.map((text, index) => element("td", price && index === 1 ? {} : { class: "number" }, text)),
    );
    row.classList.toggle("backfilled", isBackfilled);
    return row;
  };
  return { key: [timestamp, isBackfilled, ...cells].join(), make };
}

function missingRow({ from, gap }: Hole, width: number): Row {
  const missing = `${gap.missing} missing: ${reasonOf(gap)}`;
  const make = () =>
    element(
      "tr",
      { class: "missing" },
      element("th", { scope: "row" }, localFull(from)),
      element("td", {}, utc(gap.fromDt)),
      element("td", { colspan: String(width - 2) }, missing),
    );
  return { key: [gap.fromDt, missing].join(), make };
}
