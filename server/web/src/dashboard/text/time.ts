/** Instants in milliseconds since the epoch, shown in the reader's time zone unless a name says UTC. */

export const SECOND = 1000;
export const MINUTE = 60 * SECOND;
export const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;

let ahead = 0;

/** The server's clock, estimated from its answers, because the reader's clock may be wrong. */
export function now(): number {
  return Date.now() + ahead;
}

export function setServerClock(instant: number): void {
  ahead = instant - Date.now();
}

export function parse(timestamp: string): number {
  return Date.parse(timestamp);
}

/** In the API's own format, so that comparing strings compares instants. */
export function print(instant: number): string {
  return new Date(instant).toISOString().replace("Z", "000Z");
}

/** One microsecond later, the resolution of the API. */
export function justAfter(instant: number): string {
  return print(instant).replace("000Z", "001Z");
}

const timeFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minuteFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const dayFormat = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const yearFormat = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });

export function localTime(instant: number): string {
  return timeFormat.format(instant);
}

export function localMinute(instant: number): string {
  return minuteFormat.format(instant);
}

export function localDay(instant: number): string {
  return dayFormat.format(instant);
}

/** With the day unless it is today, and with the year unless it is this year. */
export function localInstant(instant: number): string {
  const today = yearFormat.format(now());
  const day = yearFormat.format(instant);
  if (day === today) return localTime(instant);
  return `${day.slice(-4) === today.slice(-4) ? localDay(instant) : day}, ${localTime(instant)}`;
}

export function localFull(instant: number): string {
  return `${yearFormat.format(instant)}, ${localTime(instant)}`;
}

/** Every digit of the API's timestamp, without trailing zeros of the fraction. */
export function utc(timestamp: string): string {
  return `${timestamp.replace("T", " ").replace(/\.?0*Z$/, "")} UTC`;
}

/** The current zone and offset, such as `Europe/Berlin, UTC+01:00`. */
export function zone(): string {
  const minutes = -new Date().getTimezoneOffset();
  const digits = (part: number) => String(Math.trunc(Math.abs(part))).padStart(2, "0");
  const offset = `UTC${minutes < 0 ? "−" : "+"}${digits(minutes / 60)}:${digits(minutes % 60)}`;
  const { timeZone } = new Intl.DateTimeFormat().resolvedOptions();
  return timeZone === "UTC" ? "UTC" : `${timeZone}, ${offset}`;
}

/** `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`. */
export function duration(milliseconds: number): string {
  const total = Math.max(0, Math.round(milliseconds / SECOND));
  const parts: [number, string][] = [
    [Math.floor(total / 86_400), "d"],
    [Math.floor(total / 3600) % 24, "h"],
    [Math.floor(total / 60) % 60, "min"],
    [total % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .filter(([count]) => count > 0)
    .map(([count, unit]) => `${count} ${unit}`)
    .join(" ");
}
