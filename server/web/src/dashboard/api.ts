/** Questions to the API of this server, the same one that everyone else asks. */

const TIMEOUT = 10_000;
/** While the API answers nothing without its token, it is asked again no more often than this. */
export const LOCKED_FOR = 60_000;

/** What the API refused, by its stable code; or that there was no answer from it at all, which has the code `UNREACHABLE`. */
export class ApiError extends Error {
  constructor(
    readonly code: string,
    message: string,
    /** Seconds, where the API says when to come back. */
    readonly retryAfter: number | null = null,
  ) {
    super(message);
  }

  get isUnreachable(): boolean {
    return this.code === "UNREACHABLE";
  }
}

/** The API answers nothing, not even what it is asked over HTTP, without its token. */
export class Locked extends ApiError {
  constructor() {
    super("UNAUTHENTICATED", "Reading this server's prices needs its token.");
  }
}

export interface CodedError {
  message: string;
  extensions?: { code?: unknown; retryAfter?: unknown };
}

export interface Asking {
  /** One that has not been accepted yet, to be tried instead of the one that was. */
  token?: string | undefined;
  signal?: AbortSignal;
}

/** One that the API has accepted. Kept for as long as the page is open, nowhere else. */
let token = "";
let lockedUntil = 0;

export function keepToken(accepted: string): void {
  token = accepted;
}

/** Goes with each question, and with the socket's `connection_init`. */
export function authorization(tried: string = token): { Authorization: string } | undefined {
  return tried ? { Authorization: `Bearer ${tried}` } : undefined;
}

const listeners = new Set<(error: ApiError | null) => void>();

/** Be told of every answer: `null` for a good one. */
export function onAnswer(listener: (error: ApiError | null) => void): void {
  listeners.add(listener);
}

/** The answer's data. Raises `ApiError`, or an `AbortError` when the signal says so. */
export async function ask<Data>(query: string, variables: object = {}, asking: Asking = {}): Promise<Data> {
  if (Date.now() < lockedUntil && !asking.token) throw new Locked();
  try {
    const data = await send<Data>(query, variables, asking);
    lockedUntil = 0;
    listeners.forEach((listener) => listener(null));
    return data;
  } catch (error) {
    if (error instanceof Locked) lockedUntil = Date.now() + LOCKED_FOR;
    if (error instanceof ApiError) listeners.forEach((listener) => listener(error));
    throw error;
  }
}

async function send<Data>(query: string, variables: object, { token: tried, signal }: Asking): Promise<Data> {
  // A header takes no others, nor does a server's token have them.
  if (tried && !/^[\x20-\x7e]+$/.test(tried)) throw new ApiError("UNAUTHENTICATED", "That is no token.");
  const timeout = AbortSignal.timeout(TIMEOUT);
  let answer: { data?: Data | null; errors?: CodedError[] };
  try {
    const response = await fetch("/graphql", {
      method: "POST",
      headers: {
        "Content-Type": "application/json",
        Accept: "application/graphql-response+json, application/json",
        ...authorization(tried),
      },
      body: JSON.stringify({ query, variables }),
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
    if (response.status === 401) throw new Locked();
    answer = await response.json();
  } catch (error) {
    signal?.throwIfAborted();
    if (error instanceof ApiError) throw error;
    const reason = timeout.aborted ? `no answer within ${TIMEOUT / 1000} s` : "no answer";
    throw new ApiError("UNREACHABLE", `The API cannot be reached: ${reason}.`);
  }
  if (answer.errors?.[0]) throw refusal(answer.errors[0]);
  if (!answer.data) throw new ApiError("UNREACHABLE", "What answered is not the API.");
  return answer.data;
}

export function refusal({ message, extensions }: CodedError): ApiError {
  const { code, retryAfter } = extensions ?? {};
  return new ApiError(
    typeof code === "string" ? code : "INTERNAL_SERVER_ERROR",
    message,
    typeof retryAfter === "number" ? retryAfter : null,
  );
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}
