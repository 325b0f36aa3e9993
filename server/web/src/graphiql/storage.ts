import type { GraphiQLProps } from "graphiql";

const PREFIX = "graphiql:";
const HISTORY = [`${PREFIX}queries`, `${PREFIX}favorites`];

/** localStorage without the headers in GraphiQL's history, because they may contain a token. */
export const storage: NonNullable<GraphiQLProps["storage"]> = {
  get length() {
    return ours().length;
  },
  getItem: (key) => localStorage.getItem(key),
  setItem: (key, value) => localStorage.setItem(key, HISTORY.includes(key) ? withoutHeaders(value) : value),
  removeItem: (key) => localStorage.removeItem(key),
  clear: () => ours().forEach((key) => localStorage.removeItem(key)),
};

function ours(): string[] {
  return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
}

function withoutHeaders(history: string): string {
  return JSON.stringify(JSON.parse(history), (key, value) => (key === "headers" ? undefined : value));
}
