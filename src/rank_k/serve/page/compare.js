// The report is a page of its own, without scripts. Its address is told to who has the key; a browser goes there.

import { got } from "/page/api.js";
import { at, show } from "/page/dom.js";

try {
  location.replace((await got("/compare/report")).path);
} catch (refused) {
  at("how").hidden = refused.status !== 404;
  show(at("told"), refused.status === 404 ? "This server has no runs to compare." : refused.message);
}
