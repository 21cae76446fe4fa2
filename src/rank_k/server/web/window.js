// A window: what was shown, what was thought and answered, how that was read.

import { byId, h, pluralize, formatSeconds, show, formatInteger } from "/page/dom.js";
import { makeSingleTabStop } from "/page/keys.js";
import { renderOrder, renderMentions } from "/page/mentions.js";

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
export function renderWindow(record, hueOf) {
  const { passages, calls, orders, repairs } = record;
  show(byId("window-title"), `Round ${record.round + 1}, window ${record.window + 1}`);
  const tokens = calls.reduce((sum, call) => sum + call.prompt_tokens + call.completion_tokens, 0);
  const totalSeconds = calls.reduce((sum, call) => sum + call.seconds, 0);
  show(byId("window-facts"), [pluralize(passages.length, "passage"), pluralize(calls.length, "call"), pluralize(tokens, "token"), formatSeconds(totalSeconds),
    `ranks ${record.reach[0]} to ${record.reach[1]} depend on it`].join(" · "));
  show(byId("repairs"), Object.entries(repairs).map(([kind, count]) =>
    h("li", {}, h("span", { class: "n" }, `${formatInteger(count)} × `), REPAIRS[kind] ?? kind.replaceAll("_", " "))));

  const rows = passages.map((passage, place) => {
    const text = h("button", {
      type: "button", class: "text", dir: "auto", "aria-expanded": "false",
      onclick: event => event.currentTarget.setAttribute("aria-expanded", String(rows[place].classList.toggle("open"))),
    }, passage.text ?? passage.doc_id);
    return h("li", { class: hueOf(passage.doc_id) }, h("span", { class: "number n" }, `[${place + 1}]`),
      h("div", {}, text, h("span", { class: "soft small" }, passage.doc_id)));
  });
  show(byId("shown"), rows);
  makeSingleTabStop(byId("shown"), "button.text");

  const passageTarget = place => place === undefined ? null : {
    hue: hueOf(passages[place].doc_id), title: (passages[place].text ?? passages[place].doc_id).slice(0, 160),
    go: () => {
      for (const row of rows) row.classList.toggle("on", row === rows[place]);
      rows[place].scrollIntoView({ block: "nearest" });
      rows[place].querySelector("button").focus({ preventScroll: true });
    },
  };
  const likelihoods = calls.length > 0 && calls.every(call => call.purpose === "likelihood");
  show(byId("calls"), likelihoods ? renderLikelihoods(calls, passageTarget) : calls.map(call => renderCall(call, passageTarget)),
    orders.map((order, number) => h("section", {}, h("h3", {}, orders.length > 1 ? `Read as, ${number + 1}` : "Read as"),
      order.ranked ? renderOrder(order.tiers, place => place + 1, n => passageTarget(n - 1)) : h("p", { class: "error" }, "No usable answer: the window kept its order."))));
  for (const box of byId("calls").querySelectorAll(".words, .order")) makeSingleTabStop(box, "button.mention");
}

function renderCall(call, passageTarget) {
  const passage = n => passageTarget(call.shown[n - 1]);
  const words = (title, text, kind) => text && [h("h4", {}, title), h("div", { class: `words ${kind}`, dir: "auto" }, renderMentions(text, passage))];
  const facts = [`${formatInteger(call.prompt_tokens)} tokens in${call.cached_tokens ? ` (${formatInteger(call.cached_tokens)} cached)` : ""}`,
    `${formatInteger(call.completion_tokens)} out${call.estimated ? " (estimated)" : ""}`, formatSeconds(call.seconds),
    call.finish_reason && call.finish_reason !== "stop" ? `ended: ${call.finish_reason}` : null, call.model];
  return h("section", {}, h("h3", {}, PURPOSES[call.purpose] ?? call.purpose), h("p", { class: "soft small n" }, facts.filter(Boolean).join(" · ")),
    words("Thought", call.reasoning, "thought"), words("Answer", call.text, "said-last"),
    h("details", {}, h("summary", {}, "The prompt"), call.messages.map(({ role, content }) =>
      h("div", { class: "prompt" }, h("p", { class: "soft small" }, role), h("div", { class: "words mono", dir: "auto" }, renderMentions(content, passage))))));
}

/** One call for each passage: a bar for each, the likeliest first. */
function renderLikelihoods(calls, passageTarget) {
  const scoredCalls = calls.filter(call => call.likelihood !== null && call.shown.length).sort((a, b) => b.likelihood - a.likelihood);
  const [best, worst] = [scoredCalls[0]?.likelihood ?? 0, scoredCalls.at(-1)?.likelihood ?? 0];
  return h("section", {}, h("h3", {}, "Log-probability of the query after each passage"),
    h("ol", { class: "likelihoods" }, scoredCalls.map(call => {
      const share = best === worst ? 1 : .04 + .96 * (call.likelihood - worst) / (best - worst);
      const { hue, title, go } = passageTarget(call.shown[0]);
      const bar = h("span", { class: "bar", "aria-hidden": "true" });
      bar.style.width = `${100 * share}%`;
      return h("li", { class: hue }, h("button", { type: "button", class: `mention ${hue}`, title, onclick: go }, `[${call.shown[0] + 1}]`),
        h("span", { class: "n" }, call.likelihood.toFixed(2)), h("span", { class: "track" }, bar));
    })), h("details", {}, h("summary", {}, "A prompt"), h("div", { class: "words mono", dir: "auto" }, calls[0].messages[0].content)));
}
