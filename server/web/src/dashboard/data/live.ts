/** The live connection: one WebSocket for all prices and for the progress of fetches. It reconnects by itself. */

import { type Client, createClient } from "graphql-ws";
import { SECOND } from "../text/time";
import { ApiError, authorization, type CodedError, keepToken, Locked, LOCKED_FOR, refusal } from "./api";
import { FETCH_PROGRESS, type FetchJob, type PlacedPrice, type Price, PRICE_UPDATES } from "./documents";

export type Connection = "connecting" | "live" | "lost";

const FIRST_WAIT = 0.5 * SECOND;
const LONGEST_WAIT = 15 * SECOND;
const PING_EVERY = 10 * SECOND;
const PONG_WITHIN = 5 * SECOND;
const ACK_WITHIN = 5 * SECOND;
/** The server refuses a subscription within this time, so after it the connection counts as live. */
const SETTLES_WITHIN = 0.4 * SECOND;
/** Close codes for a missing or wrong token. */
const REFUSALS = [4401, 4403];

interface Listener {
  /** Where to begin: the subscription's `since`, until the first price has come. */
  since: () => string;
  onPrice: (price: Price) => void;
  onChange: (connection: Connection) => void;
  /** The server needs a token that the page does not have. */
  onLocked: (error: Locked) => void;
}

export class Live {
  connection: Connection = "connecting";
  /** When the next attempt starts, on the reader's clock; `null` while not waiting. */
  retryAt: number | null = null;
  error: ApiError | null = null;

  private readonly client: Client;
  private isOpen = false;
  private failures = 0;
  private wake: (() => void) | null = null;
  private pong = 0;
  private sent: { Authorization: string } | undefined;
  /** The last price's cursor, to go on behind it. */
  private cursor: string | null = null;

  constructor(private readonly listener: Listener) {
    this.client = createClient({
      url: new URL("graphql", location.href).href.replace(/^http/, "ws"),
      keepAlive: PING_EVERY,
      connectionAckWaitTimeout: ACK_WITHIN,
      connectionParams: () => (this.sent = authorization()),
      // The client's own retries would repeat the old variables, so `run` subscribes again instead.
      retryAttempts: 0,
      on: {
        // A dead connection may send no close frame.
        ping: (isReceived) => {
          if (!isReceived) this.pong = window.setTimeout(() => this.client.terminate(), PONG_WITHIN);
        },
        pong: (isReceived) => isReceived && clearTimeout(this.pong),
        connected: () => (this.isOpen = true),
        closed: () => {
          this.isOpen = false;
          clearTimeout(this.pong);
        },
      },
    });
  }

  /** Subscribe and reconnect for as long as the page is open, with exponential backoff and jitter. */
  async run(): Promise<never> {
    for (;;) {
      this.error = await this.subscribe();
      this.failures += 1;
      // Jitter keeps clients from returning all at once after an outage.
      const longest = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** (this.failures - 1));
      const wait = this.isLocked() ? LOCKED_FOR : longest * (0.5 + Math.random() / 2);
      this.retryAt = Date.now() + wait;
      this.become("lost");
      await new Promise<void>((resolve) => {
        this.wake = resolve;
        setTimeout(resolve, wait);
      });
      [this.wake, this.retryAt] = [null, null];
      if (this.error instanceof Locked) this.error = null;
    }
  }

  retryNow(): void {
    this.wake?.();
  }

  /** Whether reconnecting is useless without a new token. Forgets a token that the server no longer accepts. */
  private isLocked(): boolean {
    if (!(this.error instanceof Locked)) return false;
    const [sent, kept] = [this.sent?.Authorization, authorization()?.Authorization];
    if (sent && sent === kept) keepToken("");
    if (sent || kept) return false;
    this.listener.onLocked(this.error);
    return true;
  }

  /** Resolves when the subscription ends, which only an error or a lost connection causes. */
  private subscribe(): Promise<ApiError | null> {
    return new Promise((resolve) => {
      let settling = 0;
      const settle = () => {
        clearTimeout(settling);
        this.failures = 0;
        this.become("live");
      };
      const connected = () => (settling = window.setTimeout(settle, SETTLES_WITHIN));
      const unlisten = this.client.on("connected", connected);
      if (this.isOpen) connected();
      const end = (error: ApiError | null) => {
        clearTimeout(settling);
        unlisten();
        resolve(error);
      };
      // Getters, because the client may send the subscription later.
      const variables = Object.defineProperties({}, {
        since: { enumerable: true, get: () => (this.cursor ? null : this.listener.since()) },
        after: { enumerable: true, get: () => this.cursor },
      });
      const unsubscribe = this.client.subscribe<{ priceUpdates: PlacedPrice }>(
        { query: PRICE_UPDATES, variables },
        {
          next: ({ data, errors }) => {
            if (data) {
              if (this.connection !== "live") settle();
              this.cursor = data.priceUpdates.cursor;
              this.listener.onPrice(data.priceUpdates);
            } else if (errors?.[0]) {
              const error = refusal(errors[0]);
              // The database was restored without that price.
              if (error.code === "BAD_USER_INPUT") this.cursor = null;
              end(error);
              unsubscribe();
            }
          },
          error: (error) => end(errorOf(error)),
          complete: () => end(null),
        },
      );
    });
  }

  /** Calls `onChange` with the job now and at every change; resolves at its end. Raises `ApiError`, also if the socket is lost. */
  progress(id: string, onChange: (job: FetchJob) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      this.client.subscribe<{ fetchProgress: FetchJob }>(
        { query: FETCH_PROGRESS, variables: { id } },
        {
          next: ({ data, errors }) => {
            if (data) onChange(data.fetchProgress);
            else if (errors?.[0]) reject(refusal(errors[0]));
          },
          error: (error) => reject(errorOf(error) ?? new ApiError("UNREACHABLE", "The live connection was lost.")),
          complete: resolve,
        },
      );
    });
  }

  private become(connection: Connection): void {
    if (connection === this.connection) return;
    this.connection = connection;
    this.listener.onChange(connection);
  }
}

/** The server's error; `null` if the socket closed for another reason. */
function errorOf(error: unknown): ApiError | null {
  if (error instanceof CloseEvent && REFUSALS.includes(error.code)) return new Locked();
  return Array.isArray(error) && error[0] ? refusal(error[0] as CodedError) : null;
}
