// Requests to the server. If the server requires a key, the page asks for it once, stores it for this tab
// (sessionStorage) and sends it in a header, never in a URL.

import { h } from "/page/dom.js";

const KEY_STORAGE = "rank-k key";

/** An error response of the server. `field`: the invalid field of the request, if there is one. */
export class RequestError extends Error {
  constructor(status, message, field) {
    super(message);
    Object.assign(this, { status, field });
  }
}

/** The JSON at `path`. Throws `RequestError`. */
export async function getJson(path, signal) {
  return (await fetchWithKey(path, { signal })).json();
}

/** The JSON response to a POST of `body`. Throws `RequestError`. */
export async function postJson(path, body, signal) {
  return (await fetchWithKey(path, { ...postOptions(body), signal })).json();
}

/** Download `path` as a file with this name. Throws `RequestError`. */
export async function downloadFile(path, name) {
  const address = URL.createObjectURL(await (await fetchWithKey(path, {})).blob());
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** The server-sent events of the response to `body`, as [kind, data], until `signal` aborts. Throws `RequestError`. */
export async function* streamEvents(path, body, signal) {
  const response = await fetchWithKey(path, { ...postOptions(body), signal });
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n").filter(line => line && !line.startsWith(":"));
        if (!lines.length) continue;
        const [kind, data] = ["event: ", "data: "].map(name => lines.find(line => line.startsWith(name)).slice(name.length));
        yield [kind, JSON.parse(data)];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The response for `path`. Asks the user for a key if the server requires one. Throws `RequestError`. */
async function fetchWithKey(path, options) {
  for (;;) {
    const key = sessionStorage.getItem(KEY_STORAGE);
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new RequestError(0, "The server cannot be reached.");
    }
    if (response.ok) return response;
    const body = await response.json().catch(() => ({}));
    if (response.status !== 401) throw new RequestError(response.status, body.message ?? `Status ${response.status}`, body.field);
    if (sessionStorage.getItem(KEY_STORAGE) === key) sessionStorage.removeItem(KEY_STORAGE);
    await requestKey(key !== null);
  }
}

function postOptions(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

let pendingKeyDialog = null;

/** Wait until the user has entered a key. All callers share one dialog. Throws `RequestError` if it is cancelled. */
function requestKey(wasRejected) {
  if (sessionStorage.getItem(KEY_STORAGE)) return Promise.resolve();
  pendingKeyDialog ??= new Promise((resolve, reject) => {
    const input = h("input", { type: "password", id: "key", autocomplete: "off", required: true, spellcheck: "false" });
    const dialog = h("dialog", { class: "key", "aria-labelledby": "key-title" },
      h("form", { method: "dialog", onsubmit: () => sessionStorage.setItem(KEY_STORAGE, input.value.trim()) },
        h("h2", { id: "key-title" }, "This server requires a key"),
        wasRejected && h("p", { class: "error", role: "alert" }, "The key was not accepted."),
        h("label", { for: "key" }, "Key"), input,
        h("p", { class: "soft" }, "The key is stored for this tab only and sent to this server only."),
        h("div", { class: "row" }, h("button", { class: "main" }, "Continue"),
          h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      pendingKeyDialog = null;
      if (sessionStorage.getItem(KEY_STORAGE)) resolve();
      else reject(new RequestError(401, "This server requires a key. Reload the page to enter it."));
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return pendingKeyDialog;
}
