/** Questions to the API of this server, the same one that everyone else asks. */

const TIMEOUT = 10_000;

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

export interface CodedError {
  message: string;
  extensions?: { code?: unknown; retryAfter?: unknown };
}

export interface Asking {
  token?: string;
  signal?: AbortSignal;
}

const listeners = new Set<(error: ApiError | null) => void>();

/** Be told of every answer: `null` for a good one. */
export function onAnswer(listener: (error: ApiError | null) => void): void {
  listeners.add(listener);
}

/** The answer's data. Raises `ApiError`, or an `AbortError` when the signal says so. */
export async function ask<Data>(query: string, variables: object = {}, { token, signal }: Asking = {}): Promise<Data> {
  try {
    const data = await send<Data>(query, variables, token, signal);
    listeners.forEach((listener) => listener(null));
    return data;
  } catch (error) {
    if (error instanceof ApiError) listeners.forEach((listener) => listener(error));
    throw error;
  }
}

async function send<Data>(query: string, variables: object, token?: string, signal?: AbortSignal): Promise<Data> {
  const timeout = AbortSignal.timeout(TIMEOUT);
  let answer: { data?: Data | null; errors?: CodedError[] };
  try {
    const response = await fetch("/graphql", {
      method: "POST",
      headers: {
        "Content-Type": "application/json",
        Accept: "application/graphql-response+json, application/json",
        ...(token && { Authorization: `Bearer ${token}` }),
      },
      body: JSON.stringify({ query, variables }),
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
    answer = await response.json();
  } catch (error) {
    signal?.throwIfAborted();
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
