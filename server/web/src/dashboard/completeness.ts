/** How complete the shown period is, and what is missing and why. */

import { element, setText } from "./elements";
import type { Gap, Source } from "./documents";
import type { History } from "./history";
import { countBySource } from "./stretches";
import { reasonOf } from "./tickers";
import { localInstant, parse, print, utc } from "./time";

const MOST_LISTED = 100;

const TOO_MANY = "In so long a period, backfilled prices are not told apart.";

/** Its colour, its name, how many. */
type Share = [kind: "observed" | "backfilled" | "unsourced" | "missing", name: string, size: number];

const count = new Intl.NumberFormat("en-US");

export class Completeness {
  private readonly headline = element("p", { class: "completeness-ratio" });
  private readonly words = element("p");
  private readonly shares = element("ul", { class: "shares", "aria-label": "Shares of the expected prices" });
  private readonly kinds = element("p", { class: "quiet" });
  private readonly gaps = element("div", { class: "gaps" });
  private drawn = "";
  private listed: Gap[] = [];

  constructor(root: HTMLElement) {
    root.append(element("div", { class: "completeness-head" }, this.headline, this.words), this.shares, this.kinds, this.gaps);
  }

  show(history: History): void {
    const { beginning, coverage, counted, sourced } = history;
    if (!coverage || !counted) {
      setText(this.headline, "");
      setText(this.words, history.error ? "It could not be counted." : "Counting …");
      this.drawShares([], 1);
      setText(this.kinds, "");
      this.list([]);
      return;
    }
    const { expected, present } = coverage;
    const missing = expected - present;
    setText(this.headline, expected === 0 ? "" : percentOf(present, expected));
    const isWithin = typeof beginning === "number" && beginning > counted.from;
    const rule = isWithin ? ` Collected since ${localInstant(beginning)}; nothing is expected before.` : "";
    setText(this.words, inWords(expected, missing) + rule);
    const [from, to] = [print(counted.from), print(counted.to - history.grid)];
    const ended = sourced?.filter(({ timestamp }) => from <= timestamp && timestamp <= to);
    const kinds = ended && countBySource(ended);
    const observed = Math.min(kinds?.SCHEDULED ?? present, present);
    const stored: Share[] = kinds
      ? [["observed", "observed", observed], ["backfilled", "backfilled", present - observed]]
      : [["unsourced", "observed or backfilled", present]];
    this.drawShares([...stored, ["missing", "missing", missing]], expected);
    const since = isWithin ? beginning : counted.from;
    const period = `Slots that have ended from ${localInstant(since)} to ${localInstant(counted.to)}.`;
    setText(this.kinds, `${period} ${kinds ? sourcesInWords(kinds, present - observed) : history.sources === null ? TOO_MANY : ""}`);
    this.kinds.hidden = expected === 0 && ended?.length === 0;
    this.shares.hidden = expected === 0;
    this.list(coverage.gaps);
  }

  /** A line for each, for one bar of all would be read as time, which the strip under the chart is. */
  private drawShares(shares: Share[], expected: number): void {
    const lines = shares.filter(([, , size]) => size > 0).map((share) => [...share, shareOf(share[2], expected)] as const);
    if (lines.join() === this.drawn) return;
    this.drawn = lines.join();
    this.shares.replaceChildren(
      ...lines.map(([kind, name, size, percent]) => {
        const bar = element("span", { class: `share share-${kind}` });
        bar.style.width = `${(size / expected) * 100}%`;
        const track = element("span", { class: "share-track", "aria-hidden": "true" }, bar);
        return element("li", {}, element("span", {}, name), track, element("span", { class: "number" }, percent));
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

/** To the nearest, but never nothing or all of it where it is not. */
function shareOf(size: number, expected: number): string {
  if (size === expected) return "100 %";
  const percent = (size / expected) * 100;
  return percent < 0.01 ? "< 0.01 %" : percent > 99.99 ? "> 99.99 %" : `${percent.toFixed(2)} %`;
}

function inWords(expected: number, missing: number): string {
  if (expected === 0) return "Nothing was to be collected in this period so far.";
  const present = `${count.format(expected - missing)} of ${count.format(expected)} prices are there`;
  return missing === 0 ? `${present}: complete.` : `${present}; ${count.format(missing)} ${missing === 1 ? "is" : "are"} missing.`;
}
