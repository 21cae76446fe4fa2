// A ranking as a list. When the ranking changes, the rows move to their new ranks.

import { h, hueClass } from "/page/dom.js";

const REDUCED_MOTION = matchMedia("(prefers-reduced-motion: reduce)");

/** Shows `passages` (texts) in `list`, an `ol`. A `place` is the index of a passage in `passages`. */
export class RankingList {
  constructor(list, passages) {
    this.list = list;
    this.rows = passages.map((text, place) => new Row(text, place));
    this.set(passages.map((_, place) => [place]));
  }

  /** Show a new ranking. `tiers`: lists of places, the best first. Places in the same list are tied. */
  set(tiers) {
    const previousTops = new Map(this.rows.map(row => [row, row.element.getBoundingClientRect().top]));
    let rank = 0;
    const order = tiers.flatMap(tier => tier.map((place, index) => this.rows[place].update((rank += 1), index > 0, index < tier.length - 1)));
    this.list.replaceChildren(...order.map(row => row.element));
    if (REDUCED_MOTION.matches) return;
    for (const row of order) {
      const offset = previousTops.get(row) - row.element.getBoundingClientRect().top;
      if (previousTops.get(row) && offset) {
        row.element.animate([{ transform: `translateY(${offset}px)` }, { transform: "none" }], { duration: 450, easing: "ease" });
      }
    }
  }

  /** Mark only the passages at these places, such as the passages of a window. */
  mark(places) {
    const marked = new Set(places);
    this.rows.forEach((row, place) => row.element.classList.toggle("marked", marked.has(place)));
  }

  /** Scroll to the passage at `place` and focus it. */
  point(place) {
    this.rows[place].element.scrollIntoView({ block: "nearest" });
    this.rows[place].button.focus({ preventScroll: true });
  }
}

class Row {
  constructor(text, place) {
    this.place = place;
    this.rank = h("span", { class: "rank n" });
    this.move = h("span", { class: "move n" });
    this.button = h("button", { type: "button", class: "text", dir: "auto", "aria-expanded": "false", onclick: () => this.open() },
      text.trim() || "(empty)");
    this.element = h("li", { class: hueClass(place + 1) }, this.rank, h("span", { class: "dot", "aria-hidden": "true" }), this.button, this.move);
  }

  open() {
    const open = this.element.classList.toggle("open");
    this.button.setAttribute("aria-expanded", String(open));
  }

  update(rank, level, levelWithNext) {
    const up = this.place + 1 - rank;
    this.rank.replaceChildren(level ? h("span", { class: "tie", title: "tied with the passage above" }, "=") : "", String(rank));
    this.element.classList.toggle("level", level);
    this.element.classList.toggle("level-next", levelWithNext);
    this.move.className = `move n ${up > 0 ? "gain" : up < 0 ? "loss" : "soft"}`;
    this.move.title = `rank ${this.place + 1} in the input`;
    this.move.replaceChildren(up > 0 ? `▲ ${up}` : up < 0 ? `▼ ${-up}` : "–");
    return this;
  }
}
