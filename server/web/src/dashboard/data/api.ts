/** Requests to this server's public GraphQL API. */

const TIMEOUT = 10_000;
/** The pause between requests while the API needs a token. */
export const LOCKED_FOR = 60_000;

/** An error of the API with its stable code. If the API did not answer, the code is `UNREACHABLE`. */
export class ApiError extends Error {
  constructor(
    readonly code: string,
    message: string,
    /** Seconds until the next attempt may succeed, if the API says so. */
    readonly retryAfter: number | null = null,
  ) {
    super(message);
  }

  get isUnreachable(): boolean {
    return this.code === "UNREACHABLE";
  }
}

/** The API needs its token, even for reads. */
export class Locked extends ApiError {
  constructor() {
    super("UNAUTHENTICATED", "This server needs a token to read prices.");
  }
}

export interface CodedError {
  message: string;
  extensions?: { code?: unknown; retryAfter?: unknown };
}

export interface Asking {
  /** A new token to try instead of the accepted one. */
  token?: string | undefined;
  signal?: AbortSignal;
}

/** The token that the API accepted. It is kept in memory only, so closing the page forgets it. */
let token = "";
let lockedUntil = 0;

export function keepToken(accepted: string): void {
  token = accepted;
}

/** Sent with each request, and with the socket's `connection_init`. */
export function authorization(tried: string = token): { Authorization: string } | undefined {
  return tried ? { Authorization: `Bearer ${tried}` } : undefined;
}

const listeners = new Set<(error: ApiError | null) => void>();

/** Calls the listener after every answer, with `null` if it has no error. */
export function onAnswer(listener: (error: ApiError | null) => void): void {
  listeners.add(listener);
}

/** The answer's data. Raises `ApiError`, or `AbortError` if the signal aborts. */
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
  // A header can carry printable ASCII only, and so can a token.
  if (tried && !/^[\x20-\x7e]+$/.test(tried)) throw new ApiError("UNAUTHENTICATED", "This is not a valid token.");
  const timeout = AbortSignal.timeout(TIMEOUT);
  let answer: { data?: Data | null; errors?: CodedError[] };
  try {
    const response = await fetch("graphql", {
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
  if (!answer.data) throw new ApiError("UNREACHABLE", "The answer did not come from the API.");
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
