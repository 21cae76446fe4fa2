// Compare: open the report, which is a separate page without scripts. Only clients with a key can request its URL.

import { getJson } from "/page/api.js";
import { byId, show } from "/page/dom.js";

try {
  const routeGroups = await getJson("/page/rooms.json");
  if (routeGroups.includes("compare")) location.replace((await getJson("/compare/report")).path);
  byId("how").hidden = routeGroups.includes("compare");
  if (!routeGroups.includes("compare")) show(byId("told"), "This server was started without runs to compare.");
} catch (error) {
  if (error.status === undefined) throw error;
  show(byId("told"), error.message);
}
