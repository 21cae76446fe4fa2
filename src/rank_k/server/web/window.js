// A window: what was shown, what was thought and answered, how that was read.

import { at, h, many, seconds, show, whole } from "/page/dom.js";
import { oneTabStop } from "/page/keys.js";
import { orderShown, withMentions } from "/page/mentions.js";

const PURPOSES = {
  ask: "Asked", direct: "Asked for the order at once", close: "Asked for the order, the thought being over",
  likelihood: "Asked how likely the query is after a passage",
};

const REPAIRS = {
  missing: "passages the answer left out, put at the end", repeated: "repeated numbers, dropped",
  out_of_range: "numbers of no passage, dropped", truncated: "thought or answer ended by the limit of tokens",
  unranked: "no usable answer: the window kept its order", retries_exhausted: "no answer at all: the window kept its order",
  content_filtered: "refused by the server's content filter: the window kept its order",
  budget_rejected: "the server refused the reasoning budget: the token limit was used instead",
  forced_answers: "the thought was ended, and the order asked for", answer_requested_again: "the order was asked for again",
  budget_exceeded: "more was thought than was allowed", constraint_violated: "the answer is none of the grammar's",
  windows_reasoned: "worth a thought after a first answer", samples_skipped: "samples not needed, as the first agreed",
  repetition_stopped: "the text went in circles and was ended", unmatched_think_tag: "an end of thought where none belongs",
  passages_truncated: "passages cut to their length", context_truncated: "windows whose passages were cut to fit the context",
  max_tokens_lowered: "shorter thoughts than wanted, to fit the context", tokens_estimated: "tokens estimated, as the server did not count",
  byte_tokens_skipped: "likelihoods of a part of the query",
};

/** `hueOf(doc id)`: a passage's color. */
export function windowShown(told, hueOf) {
  const { passages, calls, orders, repairs } = told;
  show(at("window-title"), `Round ${told.round + 1}, window ${told.window + 1}`);
  const tokens = calls.reduce((sum, call) => sum + call.prompt_tokens + call.completion_tokens, 0);
  const took = calls.reduce((sum, call) => sum + call.seconds, 0);
  show(at("window-facts"), [many(passages.length, "passage"), many(calls.length, "call"), many(tokens, "token"), seconds(took),
    `ranks ${told.reach[0]} to ${told.reach[1]} depend on it`].join(" · "));
  show(at("repairs"), Object.entries(repairs).map(([kind, count]) =>
    h("li", {}, h("span", { class: "n" }, `${whole(count)} × `), REPAIRS[kind] ?? kind.replaceAll("_", " "))));

  const rows = passages.map((passage, place) => {
    const text = h("button", {
      type: "button", class: "text", dir: "auto", "aria-expanded": "false",
      onclick: event => event.currentTarget.setAttribute("aria-expanded", String(rows[place].classList.toggle("open"))),
    }, passage.text ?? passage.doc_id);
    return h("li", { class: hueOf(passage.doc_id) }, h("span", { class: "number n" }, `[${place + 1}]`),
      h("div", {}, text, h("span", { class: "soft small" }, passage.doc_id)));
  });
  show(at("shown"), rows);
  oneTabStop(at("shown"), "button.text");

  const meant = place => place === undefined ? null : {
    hue: hueOf(passages[place].doc_id), title: (passages[place].text ?? passages[place].doc_id).slice(0, 160),
    go: () => {
      for (const row of rows) row.classList.toggle("on", row === rows[place]);
      rows[place].scrollIntoView({ block: "nearest" });
      rows[place].querySelector("button").focus({ preventScroll: true });
    },
  };
  const likelihoods = calls.length > 0 && calls.every(call => call.purpose === "likelihood");
  show(at("calls"), likelihoods ? likelihoodsShown(calls, meant) : calls.map(call => callShown(call, meant)),
    orders.map((order, number) => h("section", {}, h("h3", {}, orders.length > 1 ? `Read as, ${number + 1}` : "Read as"),
      order.ranked ? orderShown(order.tiers, place => place + 1, n => meant(n - 1)) : h("p", { class: "error" }, "No usable answer: the window kept its order."))));
  for (const box of at("calls").querySelectorAll(".words, .order")) oneTabStop(box, "button.mention");
}

function callShown(call, meant) {
  const passage = n => meant(call.shown[n - 1]);
  const words = (title, text, kind) => text && [h("h4", {}, title), h("div", { class: `words ${kind}`, dir: "auto" }, withMentions(text, passage))];
  const facts = [`${whole(call.prompt_tokens)} tokens in${call.cached_tokens ? ` (${whole(call.cached_tokens)} cached)` : ""}`,
    `${whole(call.completion_tokens)} out${call.estimated ? " (estimated)" : ""}`, seconds(call.seconds),
    call.finish_reason && call.finish_reason !== "stop" ? `ended: ${call.finish_reason}` : null, call.model];
  return h("section", {}, h("h3", {}, PURPOSES[call.purpose] ?? call.purpose), h("p", { class: "soft small n" }, facts.filter(Boolean).join(" · ")),
    words("Thought", call.reasoning, "thought"), words("Answer", call.text, "said-last"),
    h("details", {}, h("summary", {}, "The prompt"), call.messages.map(({ role, content }) =>
      h("div", { class: "prompt" }, h("p", { class: "soft small" }, role), h("div", { class: "words mono", dir: "auto" }, withMentions(content, passage))))));
}

/** One call for each passage: a bar for each, the likeliest first. */
function likelihoodsShown(calls, meant) {
  const told = calls.filter(call => call.likelihood !== null && call.shown.length).sort((a, b) => b.likelihood - a.likelihood);
  const [best, worst] = [told[0]?.likelihood ?? 0, told.at(-1)?.likelihood ?? 0];
  return h("section", {}, h("h3", {}, "Log-probability of the query after each passage"),
    h("ol", { class: "likelihoods" }, told.map(call => {
      const share = best === worst ? 1 : .04 + .96 * (call.likelihood - worst) / (best - worst);
      const { hue, title, go } = meant(call.shown[0]);
      const bar = h("span", { class: "bar", "aria-hidden": "true" });
      bar.style.width = `${100 * share}%`;
      return h("li", { class: hue }, h("button", { type: "button", class: `mention ${hue}`, title, onclick: go }, `[${call.shown[0] + 1}]`),
        h("span", { class: "n" }, call.likelihood.toFixed(2)), h("span", { class: "track" }, bar));
    })), h("details", {}, h("summary", {}, "A prompt"), h("div", { class: "words mono", dir: "auto" }, calls[0].messages[0].content)));
}
