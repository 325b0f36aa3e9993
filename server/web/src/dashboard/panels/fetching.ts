/** "Fetch now": requests a fetch of all tickers and shows its progress or its refusal. */

import { ApiError, ask, keepToken, Locked } from "../data/api";
import { FETCH_PRICES, FETCH_STATE, type FetchJob, inGraphiQL } from "../data/documents";
import type { Live } from "../data/live";
import { grouped } from "../text/decimal";
import { breakable, byId, element, setText } from "../text/elements";
import { localTime, parse, SECOND } from "../text/time";
import { title } from "./cards";

const POLL = SECOND;

const HEADLINES: Record<FetchJob["status"], string> = {
  QUEUED: "Fetch requested, waiting for a worker …",
  RUNNING: "Fetching …",
  SUCCEEDED: "Fetched: every price is stored.",
  PARTIAL: "Fetched in part: some prices could not be fetched.",
  FAILED: "The fetch failed: no price could be fetched.",
};

export class Fetching {
  private readonly button = byId<HTMLButtonElement>("fetch");
  private readonly panel = byId("fetching");
  private readonly headline = byId("fetching-headline");
  private readonly list = byId("fetching-tickers");
  private readonly form = byId<HTMLFormElement>("token-form");
  private readonly input = byId<HTMLInputElement>("token");
  /** The token typed last, for this fetch and the next ones. */
  private token: string | undefined;

  constructor(private readonly live: Live) {
    byId<HTMLAnchorElement>("fetching-query").href = inGraphiQL(FETCH_PRICES, { tickers: null });
    this.button.addEventListener("click", () => void this.fetch());
    byId("fetching-close").addEventListener("click", () => {
      this.panel.hidden = true;
      this.button.focus();
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.token = this.input.value.trim();
      void this.fetch();
    });
  }

  private async fetch(): Promise<void> {
    if (this.button.getAttribute("aria-disabled") === "true") return;
    this.button.setAttribute("aria-disabled", "true");
    this.say("busy", "Requesting a fetch …");
    this.list.replaceChildren();
    try {
      const { fetchPrices } = await ask<{ fetchPrices: FetchJob }>(FETCH_PRICES, {}, { token: this.token });
      if (this.token) keepToken(this.token);
      this.form.hidden = true;
      this.show(fetchPrices);
      await this.follow(fetchPrices.id);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      // Then the page asks for the token itself.
      if (error instanceof Locked) this.panel.hidden = true;
      else await this.refuse(error);
    } finally {
      this.button.setAttribute("aria-disabled", "false");
    }
  }

  /** By subscription, or by polling if the subscription fails. */
  private async follow(id: string): Promise<void> {
    let job: FetchJob | null = null;
    const show = (state: FetchJob) => this.show((job = state));
    await this.live.progress(id, show).catch((error) => {
      if (!(error instanceof ApiError)) throw error;
    });
    while (!isEnded(job)) {
      const { fetchJob } = await ask<{ fetchJob: FetchJob | null }>(FETCH_STATE, { id });
      if (!fetchJob) throw new ApiError("INTERNAL_SERVER_ERROR", "The API no longer has this fetch.");
      show(fetchJob);
      if (!isEnded(fetchJob)) await new Promise((resolve) => setTimeout(resolve, POLL));
    }
  }

  private show(job: FetchJob): void {
    const state = { QUEUED: "busy", RUNNING: "busy", SUCCEEDED: "good", PARTIAL: "bad", FAILED: "bad" }[job.status];
    this.say(state, HEADLINES[job.status]);
    this.list.replaceChildren(
      ...job.tickers.map((ticker) => {
        const price = job.prices.find((one) => one.ticker === ticker);
        const failure = job.failures.find((one) => one.ticker === ticker);
        const [kind, text] = price
          ? ["good", `${grouped(price.price)} at ${localTime(parse(price.timestamp))}`]
          : failure
            ? ["bad", `${failure.code}: ${failure.message}`]
            : ["busy", job.status === "QUEUED" ? "waiting" : "fetching"];
        return element("li", { class: kind!, "data-ticker": ticker }, element("b", {}, title(ticker)), " ", ...breakable(text!));
      }),
    );
  }

  private async refuse({ code, message, retryAfter }: ApiError): Promise<void> {
    this.list.replaceChildren();
    this.say("bad", message, code);
    if (code === "UNAUTHENTICATED") {
      setText(byId("token-hint"), this.token ? "That token was not accepted." : "Fetching needs this server's token.");
      this.token = undefined;
      this.form.hidden = false;
      this.input.focus();
      this.input.select();
    }
    for (let seconds = Math.ceil(retryAfter ?? 0); seconds > 0; seconds -= 1) {
      setText(this.button, `Fetch in ${seconds} s`);
      await new Promise((resolve) => setTimeout(resolve, SECOND));
    }
    setText(this.button, "Fetch now");
  }

  private say(state: string, text: string, code?: string): void {
    this.panel.hidden = false;
    this.panel.dataset.state = state;
    if (this.headline.textContent === text + (code ?? "")) return;
    this.headline.replaceChildren(text, ...(code ? [" ", element("code", {}, code)] : []));
  }
}

function isEnded(job: FetchJob | null): boolean {
  return job !== null && job.status !== "QUEUED" && job.status !== "RUNNING";
}
