// A window: its passages, its calls to the model with reasoning and answer, and the order parsed from the answers.

import { byId, h, pluralize, formatSeconds, show, formatInteger } from "/page/dom.js";
import { makeSingleTabStop } from "/page/keys.js";
import { renderOrder, renderMentions } from "/page/mentions.js";

const PURPOSES = {
  ask: "Ranking request", direct: "Ranking request without reasoning", close: "Forced answer: the order was requested after truncated reasoning",
  likelihood: "Query likelihood request",
};

const REPAIRS = {
  missing: "passages missing from the answer, placed at the end", repeated: "repeated numbers, ignored",
  out_of_range: "numbers that no passage has, ignored", truncated: "reasoning or answer truncated at the token limit",
  unranked: "no usable answer: the window kept its input order", retries_exhausted: "no response: the window kept its input order",
  content_filtered: "rejected by the server's content filter: the window kept its input order",
  budget_rejected: "the server rejected the reasoning budget: the token limit was used instead",
  forced_answers: "reasoning truncated: the answer was requested in a second call", answer_requested_again: "answer requested again",
  budget_exceeded: "reasoning longer than the budget", constraint_violated: "answer outside the grammar of constrained decoding",
  windows_reasoned: "reasoning requested after an uncertain direct answer", samples_skipped: "samples skipped because the first samples agreed",
  repetition_stopped: "response stopped early because it repeated itself", unmatched_think_tag: "reasoning tag without a matching opening or closing tag",
  passages_truncated: "passages truncated to the passage length", context_truncated: "passages truncated to fit the context",
  max_tokens_lowered: "token limit lowered to fit the context", tokens_estimated: "token counts estimated because the server cannot count tokens",
  byte_tokens_skipped: "query likelihoods computed without characters that the tokenizer splits into several tokens",
};

/** Show a window. `hueOf` and `nameOf` return the color class and the name of a passage for its document id. */
export function renderWindow(record, hueOf, nameOf) {
  const { passages, calls, orders, repairs } = record;
  show(byId("window-title"), `Round ${record.round + 1}, window ${record.window + 1}`);
  const tokens = calls.reduce((sum, call) => sum + call.prompt_tokens + call.completion_tokens, 0);
  const totalSeconds = calls.reduce((sum, call) => sum + call.seconds, 0);
  show(byId("window-facts"), [pluralize(passages.length, "passage"), pluralize(calls.length, "call"), pluralize(tokens, "token"), formatSeconds(totalSeconds),
    `decides ranks ${record.reach[0]} to ${record.reach[1]}`].join(" · "));
  show(byId("repairs"), Object.entries(repairs).map(([kind, count]) =>
    h("li", {}, h("span", { class: "n" }, `${formatInteger(count)} × `), REPAIRS[kind] ?? kind.replaceAll("_", " "))));

  const rows = passages.map((passage, place) => {
    const text = h("button", {
      type: "button", class: "text", dir: "auto", "aria-expanded": "false",
      onclick: event => event.currentTarget.setAttribute("aria-expanded", String(rows[place].classList.toggle("open"))),
    }, passage.text ?? passage.doc_id);
    return h("li", { class: hueOf(passage.doc_id) }, h("span", { class: "number n" }, `[${place + 1}]`),
      h("div", {}, text, h("span", { class: "soft small" }, nameOf(passage.doc_id))));
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
    orders.map((order, number) => h("section", {}, h("h3", {}, likelihoods ? "Order" : orders.length > 1 ? `Order read from answer ${number + 1}` : "Order read from the answer"),
      order.ranked ? renderOrder(order.tiers, place => place + 1, n => passageTarget(n - 1)) : h("p", { class: "error" }, "The answer had no usable order: the window kept its input order."))));
  for (const box of byId("calls").querySelectorAll(".words, .order")) makeSingleTabStop(box, "button.mention");
}

function renderCall(call, passageTarget) {
  const passage = n => passageTarget(call.shown[n - 1]);
  const words = (title, text, kind) => text && [h("h4", {}, title), h("div", { class: `words ${kind}`, dir: "auto" }, renderMentions(text, passage))];
  const facts = [`${formatInteger(call.prompt_tokens)} tokens in${call.cached_tokens ? ` (${formatInteger(call.cached_tokens)} cached)` : ""}`,
    `${formatInteger(call.completion_tokens)} out${call.estimated ? " (estimated)" : ""}`, formatSeconds(call.seconds),
    call.finish_reason && call.finish_reason !== "stop" ? `finish reason: ${call.finish_reason}` : null, call.model];
  return h("section", {}, h("h3", {}, PURPOSES[call.purpose] ?? call.purpose), h("p", { class: "soft small n" }, facts.filter(Boolean).join(" · ")),
    words("Reasoning", call.reasoning, "thought"), words("Answer", call.text, "said-last"),
    h("details", {}, h("summary", {}, "Prompt"), call.messages.map(({ role, content }) =>
      h("div", { class: "prompt" }, h("p", { class: "soft small" }, role), h("div", { class: "words mono", dir: "auto" }, renderMentions(content, passage))))));
}

/** Query likelihood: one call and one bar per passage, the highest likelihood first. */
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
    })), h("details", {}, h("summary", {}, "Prompt of the first call"), h("div", { class: "words mono", dir: "auto" }, calls[0].messages[0].content)));
}
