/** The choice of range, interval and form above the chart. */

import { byId, element } from "../text/elements";
import { type Choice, effective, type Form, type Interval, labelOf, offered, type Range, RANGES, resolve } from "./choice";

export class Controls {
  private readonly ranges = byId("ranges");
  private readonly intervals = byId<HTMLSelectElement>("interval");
  private readonly forms = byId("forms");

  constructor(
    private readonly choice: Choice,
    private readonly onChange: () => void,
  ) {
    for (const [name, { label }] of Object.entries(RANGES)) this.ranges.append(option("range", name, label));
    this.forms.append(option("form", "line", "Line"), option("form", "candles", "Candles"));
    this.ranges.addEventListener("change", (event) => this.set("range", valueOf(event) as Range));
    this.forms.addEventListener("change", (event) => this.set("form", valueOf(event) as Form));
    this.intervals.addEventListener("change", (event) => this.set("interval", valueOf(event) as Interval));
  }

  /** `grid`: seconds from slot to slot. */
  show(grid: number): void {
    const resolved = resolve(this.choice, grid);
    const { range, form, interval } = resolved;
    check(this.ranges, range);
    check(this.forms, form);
    const intervals = offered(range, form, grid);
    const automatic = `Auto: ${labelOf(effective({ ...resolved, interval: "AUTO" }, grid))}`;
    const options = [["AUTO", automatic], ...intervals.map((name) => [name, labelOf(name)])] as [string, string][];
    this.intervals.replaceChildren(...options.map(([value, label]) => element("option", { value }, label)));
    this.intervals.value = intervals.some((name) => name === interval) ? interval : "AUTO";
  }

  private set<Name extends "range" | "form" | "interval">(name: Name, value: Choice[Name]): void {
    this.choice[name] = value;
    this.onChange();
  }
}

function option(name: string, value: string, label: string): HTMLElement {
  const input = element("input", { type: "radio", name, value });
  return element("label", {}, input, element("span", {}, label));
}

function check(group: HTMLElement, value: string): void {
  for (const input of group.querySelectorAll("input")) input.checked = input.value === value;
}

function valueOf(event: Event): string {
  return (event.target as HTMLInputElement | HTMLSelectElement).value;
}
