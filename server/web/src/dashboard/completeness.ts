/** How complete the shown period is, and what is missing and why. */

import { element, setText } from "./elements";
import type { Gap, Source } from "./documents";
import type { History } from "./history";
import { countBySource } from "./stretches";
import { reasonOf } from "./tickers";
import { localInstant, parse, print, utc } from "./time";

const MOST_LISTED = 100;

const TOO_MANY = "In so long a period, backfilled prices are not told apart.";

const count = new Intl.NumberFormat("en-US");

export class Completeness {
  private readonly headline = element("p", { class: "completeness-ratio" });
  private readonly words = element("p");
  private readonly parts = element("div", { class: "parts", "aria-hidden": "true" });
  private readonly kinds = element("p", { class: "quiet" });
  private readonly gaps = element("div", { class: "gaps" });
  private listed: Gap[] = [];

  constructor(root: HTMLElement) {
    root.append(element("div", { class: "completeness-head" }, this.headline, this.words), this.parts, this.kinds, this.gaps);
  }

  show(history: History): void {
    const { coverage, counted, sourced } = history;
    if (!coverage || !counted) {
      setText(this.headline, "");
      setText(this.words, history.error ? "It could not be counted." : "Counting …");
      this.parts.replaceChildren();
      setText(this.kinds, "");
      this.list([]);
      return;
    }
    const { expected, present } = coverage;
    const missing = expected - present;
    setText(this.headline, expected === 0 ? "" : percentOf(present, expected));
    setText(this.words, inWords(expected, missing));
    const [from, to] = [print(counted.from), print(counted.to - history.grid)];
    const ended = sourced?.filter(({ timestamp }) => from <= timestamp && timestamp <= to);
    const kinds = ended && countBySource(ended);
    const observed = Math.min(kinds?.SCHEDULED ?? present, present);
    this.drawParts({ observed, backfilled: present - observed, missing });
    const period = `Slots that have ended from ${localInstant(counted.from)} to ${localInstant(counted.to)}.`;
    setText(this.kinds, `${period} ${kinds ? sourcesInWords(kinds, present - observed) : history.sources === null ? TOO_MANY : ""}`);
    this.kinds.hidden = expected === 0 && ended?.length === 0;
    this.parts.hidden = expected === 0;
    this.list(coverage.gaps);
  }

  private drawParts(parts: Record<"observed" | "backfilled" | "missing", number>): void {
    const bars = Object.entries(parts).filter(([, size]) => size > 0);
    this.parts.replaceChildren(
      ...bars.map(([name, size]) => {
        const bar = element("span", { class: `part part-${name}` });
        bar.style.flexGrow = String(size);
        return bar;
      }),
    );
  }

  private list(gaps: Gap[]): void {
    if (JSON.stringify(gaps) === JSON.stringify(this.listed)) return;
    this.listed = gaps;
    if (gaps.length === 0) {
      this.gaps.replaceChildren();
      return;
    }
    const isOpen = this.gaps.querySelector("details")?.open ?? true;
    const newest = gaps.slice(-MOST_LISTED).reverse();
    const details = element(
      "details",
      {},
      element("summary", {}, gaps.length === 1 ? "1 gap" : `${count.format(gaps.length)} gaps, newest first`),
      element("ol", {}, ...newest.map(gapItem)),
    );
    details.open = isOpen;
    if (newest.length < gaps.length) details.append(element("p", { class: "quiet" }, `The newest ${MOST_LISTED} are listed.`));
    this.gaps.replaceChildren(details);
  }
}

function gapItem(gap: Gap): HTMLElement {
  const [from, to] = [parse(gap.fromDt), parse(gap.toDt)];
  const period = element("time", { datetime: gap.fromDt, title: utc(gap.fromDt) }, `${localInstant(from)} – ${localInstant(to)}`);
  const missing = gap.missing === 1 ? "1 price" : `${count.format(gap.missing)} prices`;
  return element("li", {}, period, element("span", { class: "gap-size" }, missing), element("span", {}, reasonOf(gap)));
}

/** Rows of before a ticker was first collected are there for the chart; nothing was expected then. */
function sourcesInWords({ SCHEDULED, BACKFILLED, REQUESTED }: Record<Source, number>, backfilled: number): string {
  const earlier = Math.max(0, BACKFILLED - backfilled);
  const uncounted = [
    ...(earlier ? [`${count.format(earlier)} backfilled from before it was first collected`] : []),
    ...(REQUESTED ? [`${count.format(REQUESTED)} requested`] : []),
  ];
  const counted = `${count.format(SCHEDULED)} observed, ${count.format(backfilled)} backfilled.`;
  return uncounted.length === 0 ? counted : `${counted} Besides, not counted: ${uncounted.join(", ")}.`;
}

/** Rounded down, so that only a whole period is 100 %. */
function percentOf(present: number, expected: number): string {
  const hundredths = Math.floor((present * 10_000) / expected);
  return present === expected ? "100 %" : `${(hundredths / 100).toFixed(2)} %`;
}

function inWords(expected: number, missing: number): string {
  if (expected === 0) return "Nothing was to be collected in this period so far.";
  const present = `${count.format(expected - missing)} of ${count.format(expected)} prices are there`;
  return missing === 0 ? `${present}: complete.` : `${present}; ${count.format(missing)} ${missing === 1 ? "is" : "are"} missing.`;
}
