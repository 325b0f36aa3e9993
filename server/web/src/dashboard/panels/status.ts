/** The state of the connection to the API, and a notice that says what it means for the prices shown. */

import { type ApiError, Locked } from "../data/api";
import type { Live } from "../data/live";
import { age, isStale, type Known, reasonOf } from "../data/tickers";
import { byId, setText } from "../text/elements";
import { duration, localTime, SECOND } from "../text/time";

type State = "connecting" | "live" | "reconnecting" | "impaired" | "offline" | "locked";

const NAMES: Record<State, string> = {
  connecting: "Connecting",
  live: "Live",
  reconnecting: "Reconnecting",
  impaired: "No database",
  offline: "Offline",
  locked: "Token needed",
};
/** A connection that returns sooner needs no notice. */
const GRACE = 1.5 * SECOND;

export class Status {
  private readonly pill = byId("connection");
  private readonly notice = byId("notice");
  private readonly words = byId("notice-words");
  private readonly countdown = byId("notice-countdown");
  private readonly access = byId("access");
  private readonly fetch = byId("fetch");
  private readonly retry = byId<HTMLButtonElement>("retry");
  private readonly testnet = byId("testnet");
  private error: ApiError | null = null;
  private answeredAt: number | null = null;
  private lostAt: number | null = null;

  constructor(
    private readonly live: Live,
    onRetry: () => void,
  ) {
    this.retry.addEventListener("click", onRetry);
  }

  /** Note an answer of the API, `null` without an error. Errors of one request are shown by its panel. */
  note(error: ApiError | null): void {
    if (!error) this.hear();
    const concernsAll = !error || error.isUnreachable || error.code === "STORAGE_UNAVAILABLE";
    if (concernsAll || error instanceof Locked) this.error = error;
  }

  /** Note that the API sent something, over HTTP or the socket. */
  hear(): void {
    this.answeredAt = Date.now();
  }

  get state(): State {
    if (this.error instanceof Locked) return "locked";
    if (this.isImpaired) return "impaired";
    if (this.live.connection === "live") return "live";
    if (this.error?.isUnreachable) return "offline";
    return this.live.connection === "connecting" ? "connecting" : "reconnecting";
  }

  private get isImpaired(): boolean {
    return this.error !== null && !this.error.isUnreachable;
  }

  show(tickers: Known[]): void {
    const { state } = this;
    this.pill.dataset.state = state;
    setText(this.pill, NAMES[state]);
    const isLocked = state === "locked";
    this.lostAt = this.live.connection === "live" || isLocked ? null : (this.lostAt ?? Date.now());
    const [kind, text] = this.wordsFor(state, tickers);
    this.notice.hidden = text === "";
    this.notice.dataset.kind = kind;
    setText(this.words, text);
    const { connection, retryAt } = this.live;
    const wait = connection === "live" || isLocked || retryAt === null ? 0 : retryAt - Date.now();
    setText(this.countdown, wait > 0 ? `Next attempt in ${Math.ceil(wait / SECOND)} s.` : "");
    this.retry.hidden = state === "live" || state === "connecting" || isLocked;
    this.access.hidden = !isLocked;
    this.fetch.hidden = isLocked;
    this.testnet.hidden = !tickers.some(({ latest }) => latest?.testnet);
  }

  private wordsFor(state: State, tickers: Known[]): [kind: string, text: string] {
    const asOf = this.answeredAt ? ` The page shows the state of ${localTime(this.answeredAt)}.` : "";
    if (state === "offline") return ["bad", `The API cannot be reached.${asOf}`];
    if (state === "locked") return ["warn", `${this.error!.message}${asOf}`];
    if (state === "impaired") return ["bad", `The API answers, but its database does not (${this.error!.code}).${asOf}`];
    if (state !== "live" && Date.now() - this.lostAt! > GRACE) {
      const because = this.live.error ? ` (${this.live.error.code}: ${this.live.error.message})` : "";
      return ["warn", `The live connection is lost${because}. Until it returns, the page reads prices every few seconds.`];
    }
    if (tickers.length === 0) return ["", ""];
    const collected = tickers.filter(({ latest }) => latest);
    const unknown = tickers.filter(({ near }) => near);
    if (unknown.length === tickers.length) {
      return ["bad", "No ticker of this server exists at the exchange, so nothing is collected. Correct TICKERS."];
    }
    if (collected.length === 0) {
      return ["info", "Nothing has been collected yet. The first price appears here as soon as it is stored."];
    }
    if (collected.every(isStale)) return ["warn", staleWords(collected)];
    return ["", ""];
  }
}

function staleWords(tickers: Known[]): string {
  const youngest = Math.min(...tickers.map((known) => age(known)!));
  const gap = tickers.find((known) => known.gap)?.gap;
  const why = gap ? `: ${reasonOf(gap)}` : "";
  // To the minute, because a screen reader announces every change.
  const old = youngest < 60 * SECOND ? "less than a minute" : duration(Math.floor(youngest / 60_000) * 60_000);
  return `Every price is stale; the newest is ${old} old${why}.`;
}
