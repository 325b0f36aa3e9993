/** Makes and finds elements. The Content-Security-Policy allows no inline HTML and no inline styles. */

type Child = Node | string | null;

export function element<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  attributes: Record<string, string> = {},
  ...children: Child[]
): HTMLElementTagNameMap[Tag] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function byId<Element extends HTMLElement = HTMLElement>(id: string): Element {
  return document.getElementById(id) as Element;
}

/** Changes nothing if the text is the same, so that screen readers do not announce it again and selections survive. */
export function setText(target: Element, text: string): void {
  if (target.textContent !== text) target.textContent = text;
}

/** Text for screen readers only. */
export function unseen(text: string): HTMLElement {
  return element("span", { class: "unseen" }, text);
}

const NUMBER = /([+−±]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+))/;

/** The text with each number kept on one line. A number wider than its line breaks after a comma or before the point. */
export function breakable(text: string): (HTMLElement | string)[] {
  return text.split(NUMBER).flatMap((part, index): (HTMLElement | string)[] => {
    if (index % 2 === 0) return part ? [part] : [];
    const pieces = part.split(/(?<=,)|(?=\.)/).flatMap((piece, n) => (n ? [element("wbr"), piece] : [piece]));
    return [element("span", { class: "whole-number" }, ...pieces)];
  });
}

/** As `setText`, with `breakable` numbers. */
export function setNumbers(target: Element, text: string): void {
  if (target.textContent !== text) target.replaceChildren(...breakable(text));
}
