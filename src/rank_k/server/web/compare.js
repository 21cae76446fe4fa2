// The report is a page of its own, without scripts. Its address is told to who has the key; a browser goes there.

import { getJson } from "/page/api.js";
import { byId, show } from "/page/dom.js";

try {
  const routeGroups = await getJson("/page/rooms.json");
  if (routeGroups.includes("compare")) location.replace((await getJson("/compare/report")).path);
  byId("how").hidden = routeGroups.includes("compare");
  if (!routeGroups.includes("compare")) show(byId("told"), "This server has no runs to compare.");
} catch (error) {
  if (error.status === undefined) throw error;
  show(byId("told"), error.message);
}
