// The report is a page of its own, without scripts. Its address is told to who has the key; a browser goes there.

import { got } from "/page/api.js";
import { at, show } from "/page/dom.js";

try {
  const rooms = await got("/page/rooms.json");
  if (rooms.includes("compare")) location.replace((await got("/compare/report")).path);
  at("how").hidden = rooms.includes("compare");
  if (!rooms.includes("compare")) show(at("told"), "This server has no runs to compare.");
} catch (refused) {
  if (refused.status === undefined) throw refused;
  show(at("told"), refused.message);
}
