/** How complete the shown period is, what is missing, and why. */

import type { History } from "../chart/history";
import { countBySource } from "../chart/stretches";
import type { Gap, Source } from "../data/documents";
import { reasonOf } from "../data/tickers";
import { counted } from "../text/decimal";
import { element, setText } from "../text/elements";
import { localInstant, parse, print, utc } from "../text/time";

const MAX_LISTED = 100;

const TOO_MANY = "The period is too long to tell observed and recovered prices apart.";

type Share = [kind: "observed" | "recovered" | "backfilled" | "unsourced" | "missing", name: string, size: number];

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

  /** `fillingTo`: how far back the history is being filled. */
  show(history: History, fillingTo: string | null): void {
    const { beginning, coverage, counted: period, sourced } = history;
    if (!coverage || !period) {
      setText(this.headline, "");
      setText(this.words, history.error ? "The count failed." : "Counting …");
      this.drawShares([], 1);
      setText(this.kinds, "");
      this.list([]);
      return;
    }
    const { expected, present } = coverage;
    const missing = expected - present;
    setText(this.headline, expected === 0 ? "" : percentOf(present, expected));
    const isWithin = typeof beginning === "number" && beginning > period.from;
    const rule = isWithin ? ` Collected since ${localInstant(beginning)}; nothing is expected before.` : "";
    const filling = fillingTo ? ` The history is being filled back to ${localInstant(parse(fillingTo))}.` : "";
    setText(this.words, inWords(expected, missing) + rule + filling);
    const [from, to] = [print(period.from), print(period.to - history.grid)];
    const ended = sourced?.filter(({ timestamp }) => from <= timestamp && timestamp <= to);
    const kinds = ended && countBySource(ended);
    const recovered = Math.min(kinds?.RECOVERED ?? 0, coverage.observed);
    const stored: Share[] = kinds
      ? [
          ["observed", "observed", coverage.observed - recovered],
          ["recovered", "recovered", recovered],
        ]
      : [["unsourced", "observed or recovered", coverage.observed]];
    stored.push(["backfilled", "backfilled", coverage.averaged]);
    this.drawShares([...stored, ["missing", "missing", missing]], expected);
    const since = isWithin ? beginning : period.from;
    const slots = `Ended slots from ${localInstant(since)} to ${localInstant(period.to)}.`;
    setText(this.kinds, `${slots} ${kinds ? sourcesInWords(kinds, recovered, coverage.averaged) : history.sources === null ? TOO_MANY : ""}`);
    this.kinds.hidden = expected === 0 && ended?.length === 0;
    this.shares.hidden = expected === 0;
    this.list(coverage.gaps);
  }

  /** One bar for each share. A single bar would look like the chart's strip, whose direction is time. */
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
    const newest = gaps.slice(-MAX_LISTED).reverse();
    const details = element(
      "details",
      {},
      element("summary", {}, `${counted(gaps.length, "gap")}${gaps.length > 1 ? ", newest first" : ""}`),
      element("ol", {}, ...newest.map(gapItem)),
    );
    details.open = isOpen;
    if (newest.length < gaps.length) details.append(element("p", { class: "quiet" }, `The newest ${MAX_LISTED} are listed.`));
    this.gaps.replaceChildren(details);
  }
}

function gapItem(gap: Gap): HTMLElement {
  const [from, to] = [parse(gap.fromDt), parse(gap.toDt)];
  const period = element("time", { datetime: gap.fromDt, title: utc(gap.fromDt) }, `${localInstant(from)} – ${localInstant(to)}`);
  return element("li", {}, period, element("span", { class: "gap-size" }, counted(gap.missing, "price")), element("span", {}, reasonOf(gap)));
}

/** Rows from before a ticker was first collected appear in the chart, but nothing was expected then. */
function sourcesInWords(
  { SCHEDULED, RECOVERED, BACKFILLED, REQUESTED }: Record<Source, number>,
  recovered: number,
  backfilled: number,
): string {
  const earlier = Math.max(0, BACKFILLED - backfilled);
  const recoveredEarlier = Math.max(0, RECOVERED - recovered);
  const uncounted = [
    ...(earlier ? [`${count.format(earlier)} backfilled from before it was first collected`] : []),
    ...(recoveredEarlier ? [`${count.format(recoveredEarlier)} recovered from before it was first collected`] : []),
    ...(REQUESTED ? [`${count.format(REQUESTED)} requested`] : []),
  ];
  const counted = `${count.format(SCHEDULED)} observed, ${count.format(recovered)} recovered, ${count.format(backfilled)} backfilled.`;
  return uncounted.length === 0 ? counted : `${counted} Not counted: ${uncounted.join(", ")}.`;
}

/** Rounded down, so that only a whole period is 100 %. */
function percentOf(present: number, expected: number): string {
  const hundredths = Math.floor((present * 10_000) / expected);
  return present === expected ? "100 %" : `${(hundredths / 100).toFixed(2)} %`;
}

/** Rounded, but a part is never shown as 0 % or 100 %. */
function shareOf(size: number, expected: number): string {
  if (size === expected) return "100 %";
  const percent = (size / expected) * 100;
  return percent < 0.01 ? "< 0.01 %" : percent > 99.99 ? "> 99.99 %" : `${percent.toFixed(2)} %`;
}

function inWords(expected: number, missing: number): string {
  if (expected === 0) return "No prices are expected in this period so far.";
  const present = `${count.format(expected - missing)} of ${counted(expected, "expected price")} stored`;
  return missing === 0 ? `${present}: complete.` : `${present}, ${count.format(missing)} missing.`;
}
