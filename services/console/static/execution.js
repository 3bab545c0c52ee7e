// The page of one run: when the panel says that the run has ended, or what it cost, what stands beside it is fetched again.

import { ask, swap } from "./console.js";

document.querySelector("[data-run-panel]")?.addEventListener("run-ended", async () => {
  if (!document.querySelector("#facts[data-unsettled]")) return;
  const answer = await ask(location.href, { headers: { "X-Fragment": "facts" } }).catch(() => null);
  if (answer?.ok) swap("facts", await answer.text());
});
