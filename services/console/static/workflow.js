// The page of a workflow under way: with every change of a step the state is fetched again, one request at a time.

import { ask, say, swap } from "./console.js";
import { showLive } from "./steps.js";

const source = (() => {
  const state = document.querySelector("#state[data-events]");
  return state && new EventSource(state.dataset.events);
})();
let wanted = false;
let fetching = false;

async function refresh() {
  wanted = true;
  if (fetching) return;
  fetching = true;
  while (wanted) {
    wanted = false;
    const answer = await ask(location.href, { headers: { "X-Fragment": "state" } }).catch(() => null);
    if (answer?.ok) (swap("state", await answer.text()), showLive());
    else if (answer && !answer.headers.has("X-Location")) say("The latest state could not be loaded; reload the page.");
  }
  fetching = false;
}

showLive();
for (const kind of ["step", "snapshot"]) source?.addEventListener(kind, refresh);
for (const kind of ["completed", "failed"]) {
  source?.addEventListener(kind, () => {
    source.close();
    refresh();
  });
}
// Closed for good: it ended meanwhile, or cannot be followed. The state says which.
source?.addEventListener("error", () => source.readyState === EventSource.CLOSED && refresh());
