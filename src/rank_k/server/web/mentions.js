// Show references to passages in a text, such as `[3]`, as buttons in the color of the passage.

import { h } from "/page/dom.js";

const MENTION = /[[［【]\s*(\d{1,4})\s*[\]］】]/g;
const PARTIAL_MENTION = /[[［【][\s\d]{0,6}$/;

/**
 * Nodes for `text`. `passage(n)` returns { hue, title, go } for the passage with number n, or null if there is no such
 * passage; the reference then remains text. `go` is called when the button is clicked.
 */
export function renderMentions(text, passage) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(MENTION)) {
    const target = passage(Number(match[1]));
    if (target === null) continue;
    nodes.push(text.slice(end, match.index), renderMention(match[0], Number(match[1]), target));
    end = match.index + match[0].length;
  }
  nodes.push(text.slice(end));
  return nodes.filter(node => node !== "");
}

/** Appends a streamed text to `element`. An incomplete reference is held back until its next chunk arrives. */
export class StreamedText {
  constructor(element, passage) {
    Object.assign(this, { element, passage, text: "", pending: "" });
  }

  add(piece) {
    this.text += piece;
    const combined = this.pending + piece;
    const partial = PARTIAL_MENTION.exec(combined);
    const ready = partial ? combined.slice(0, partial.index) : combined;
    this.pending = combined.slice(ready.length);
    this.element.append(...renderMentions(ready, this.passage));
  }

  /** Append what is held back, after the last chunk. */
  end() {
    this.element.append(this.pending);
    this.pending = "";
  }
}

/** The ranking of a window, such as `[3] > [2] = [1]`. `tiers`: lists of tied items. `number(item)`: an item's number. */
export function renderOrder(tiers, number, passage) {
  const nodes = tiers.flatMap((tier, place) => tier.flatMap((item, index) => {
    const n = number(item);
    const target = passage(n);
    return [index ? " = " : place ? " > " : "", target ? renderMention(`[${n}]`, n, target) : `[${n}]`];
  }));
  return h("p", { class: "order" }, nodes);
}

function renderMention(text, n, { hue, title, go }) {
  return h("button", { type: "button", class: `mention ${hue}`, title, "data-n": n, tabindex: -1, onclick: go }, text);
}
