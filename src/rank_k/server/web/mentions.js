// Texts in which passages are mentioned by number, as `[3]`: the mentions become buttons in the passage's color.

import { h } from "/page/dom.js";

const MENTION = /[[［【]\s*(\d{1,4})\s*[\]］】]/g;
const BEGUN = /[[［【][\s\d]{0,6}$/;

/**
 * Nodes for `text`. `passage(n)` tells of the passage that is meant by number n: { hue, title, go }, or null if none
 * is: such a number stays text. `go` is called when the mention is pressed.
 */
export function withMentions(text, passage) {
  const nodes = [];
  let end = 0;
  for (const found of text.matchAll(MENTION)) {
    const meant = passage(Number(found[1]));
    if (meant === null) continue;
    nodes.push(text.slice(end, found.index), mention(found[0], Number(found[1]), meant));
    end = found.index + found[0].length;
  }
  nodes.push(text.slice(end));
  return nodes.filter(node => node !== "");
}

/** A text that grows piece by piece, at the end of `element`: a mention that is still being written waits. */
export class Growing {
  constructor(element, passage) {
    Object.assign(this, { element, passage, text: "", pending: "" });
  }

  add(piece) {
    this.text += piece;
    const whole = this.pending + piece;
    const begun = BEGUN.exec(whole);
    const ready = begun ? whole.slice(0, begun.index) : whole;
    this.pending = whole.slice(ready.length);
    this.element.append(...withMentions(ready, this.passage));
  }

  /** Nothing more comes. */
  end() {
    this.element.append(this.pending);
    this.pending = "";
  }
}

/** An order as `[3] > [2] = [1]`. `tiers`: lists of whatever `number` makes a number of. */
export function orderShown(tiers, number, passage) {
  const nodes = tiers.flatMap((tier, place) => tier.flatMap((item, at) => {
    const n = number(item);
    const meant = passage(n);
    return [at ? " = " : place ? " > " : "", meant ? mention(`[${n}]`, n, meant) : `[${n}]`];
  }));
  return h("p", { class: "order" }, nodes);
}

function mention(text, n, { hue, title, go }) {
  return h("button", { type: "button", class: `mention ${hue}`, title, "data-n": n, tabindex: -1, onclick: go }, text);
}
