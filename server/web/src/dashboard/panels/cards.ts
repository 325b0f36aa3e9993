/** A card per ticker: the newest price, its changes and its age. */

import { age, isStale, type Known, reasonOf, type Span, SPANS, unknownWords } from "../data/tickers";
import { changeBetween, grouped } from "../text/decimal";
import { breakable, element, setNumbers, setText, unseen } from "../text/elements";
import { duration, localInstant, parse, utc } from "../text/time";

const SOURCE_MARKS = { SCHEDULED: null, REQUESTED: "requested", RECOVERED: "recovered", BACKFILLED: "backfilled" };
const ARROWS = { up: "▲", down: "▼", none: "=" };
const FLASH = 250;

export class Cards {
  private readonly cards = new Map<string, Card>();

  constructor(
    private readonly list: HTMLElement,
    private readonly onChoose: (ticker: string) => void,
  ) {}

  show(tickers: Known[], chosen: string): void {
    if (this.cards.size === 0 && tickers.length > 0) this.list.replaceChildren();
    for (const known of tickers) {
      let card = this.cards.get(known.name);
      if (!card) {
        card = new Card(known.name, () => this.onChoose(known.name));
        this.cards.set(known.name, card);
        this.list.append(card.root);
      }
      card.show(known, known.name === chosen);
    }
  }
}

class Card {
  readonly root: HTMLElement;
  private readonly choose = element("button", { type: "button", class: "card-choose" });
  private readonly marks = element("p", { class: "marks" });
  private readonly price = element("data", { class: "price" });
  private readonly when = element("p", { class: "when" });
  private readonly changes = element("dl", { class: "changes" });
  private shown = "";
  private compared: string | null = null;

  constructor(name: string, onChoose: () => void) {
    this.choose.append(title(name), unseen(": show in the chart"));
    this.choose.addEventListener("click", onChoose);
    const head = element("div", { class: "card-head" }, element("h3", {}, this.choose), this.marks);
    const newest = element("div", { class: "newest" }, head, this.price, this.when);
    const card = element("div", { class: "card" }, newest, this.changes);
    this.root = element("li", { "data-ticker": name }, card);
  }

  show(known: Known, isChosen: boolean): void {
    this.choose.setAttribute("aria-pressed", String(isChosen));
    this.root.classList.toggle("chosen", isChosen);
    this.root.classList.toggle("stale", isStale(known));
    this.showMarks(known);
    this.showPrice(known);
    this.showAge(known);
    this.showChanges(known);
  }

  private showMarks(known: Known): void {
    const source = known.latest && SOURCE_MARKS[known.latest.source];
    const freshness = known.near ? "unknown" : known.latest && isStale(known) ? "stale" : null;
    const marks = [freshness, known.latest?.testnet ? "testnet" : null, source];
    const wanted = marks.filter((mark) => mark !== null);
    if (wanted.join() === [...this.marks.children].map((mark) => mark.textContent).join()) return;
    this.marks.replaceChildren(...wanted.map((mark) => element("span", { class: `mark mark-${mark}` }, mark)));
  }

  private showPrice({ latest, near }: Known): void {
    const price = latest?.price ?? "";
    const text = latest ? grouped(price) : near ? "Unknown index" : "No price yet";
    setNumbers(this.price, text);
    this.price.style.setProperty("--characters", String(text.length));
    this.price.classList.toggle("nothing", !latest);
    if (price !== this.shown && this.shown) {
      this.price.classList.add("fresh");
      setTimeout(() => this.price.classList.remove("fresh"), FLASH);
    }
    [this.price.value, this.shown] = [price, price];
  }

  private showAge(known: Known): void {
    const old = age(known);
    const why = known.near ? unknownWords(known) : known.gap && isStale(known) ? `Why: ${reasonOf(known.gap)}.` : "";
    if (!known.latest || old === null) {
      setText(this.when, why || "The first price appears here as soon as it is stored.");
      return;
    }
    const { timestamp } = known.latest;
    const time = this.when.querySelector("time") ?? element("time");
    time.dateTime = timestamp;
    time.title = utc(timestamp);
    setText(time, localInstant(parse(timestamp)));
    const ago = this.when.querySelector(".ago") ?? element("span", { class: "ago" });
    setText(ago, `${duration(old)} old`);
    const reason = this.when.querySelector(".why") ?? element("span", { class: "why" });
    setText(reason, why);
    if (!this.when.contains(time)) this.when.replaceChildren(ago, " · ", time, reason);
  }

  private showChanges({ latest, before }: Known): void {
    const spans = Object.keys(SPANS) as Span[];
    const compared = [latest?.price ?? "", ...spans.map((span) => before[span]?.timestamp ?? String(before[span]))].join();
    if (compared === this.compared) return;
    this.compared = compared;
    this.changes.hidden = !latest;
    if (!latest) return;
    this.changes.replaceChildren(
      ...spans.flatMap((span) => {
        const name = element("dt", {}, unseen("Change over "), span);
        const earlier = before[span];
        if (!earlier) {
          const text = earlier === null ? "no price to compare with" : "…";
          return [name, element("dd", { class: "incomparable" }, text)];
        }
        const change = changeBetween(earlier.price, latest.price);
        const from = `from ${grouped(earlier.price)} at ${localInstant(parse(earlier.timestamp))}`;
        return [
          name,
          element(
            "dd",
            { class: `change ${change.direction}` },
            element("span", { class: "arrow", "aria-hidden": "true" }, ARROWS[change.direction]),
            element("strong", {}, change.percent ?? ""),
            element("span", { class: "difference" }, ...breakable(change.difference)),
            element("span", { class: "earlier" }, ...breakable(from)),
          ),
        ];
      }),
    );
  }
}

/** `btc_usd` as `BTC/USD`. */
export function title(ticker: string): string {
  return ticker.toUpperCase().replace("_", "/");
}
