// The page of a workflow under way: with every change of a step the state is fetched again, one request at a time.

import { isAway, keepTrying, tryingLine } from "./again.js";
import { ask, swap } from "./console.js";
import { following } from "./following.js";
import { showLive } from "./steps.js";

let wanted = false;
let fetching = false;
let notice = null;

/** Says that nothing answers, in the corner, until it does. */
function away(left_s) {
  if (!notice) {
    const { line, tell } = tryingLine("The connection is lost, and the workflow goes on.");
    notice = { tell, toast: Object.assign(document.createElement("div"), { className: "toast" }) };
    notice.toast.append(line);
    document.querySelector(".toasts").append(notice.toast);
  }
  notice.tell(left_s);
}

function here() {
  notice?.toast.remove();
  notice = null;
}

/** Whether the state could be had. */
async function fetched() {
  const answer = await ask(location.href, { headers: { "X-Fragment": "state" } }).catch(() => null);
  if (!answer || isAway(answer)) return false;
  here();
  if (answer.ok && !answer.headers.has("X-Location")) (swap("state", await answer.text()), showLive());
  return true;
}

async function refresh() {
  wanted = true;
  if (fetching) return;
  fetching = true;
  while (wanted) {
    wanted = false;
    if (!(await fetched())) await new Promise((resolve) => keepTrying(async () => (await fetched()) && (resolve(), true), away));
  }
  fetching = false;
}

showLive();
const state = document.querySelector("#state[data-events]");
if (state) {
  const stop = following(state.dataset.events, ["step", "snapshot", "completed", "failed"], {
    after: Number(state.dataset.after),
    heard(kind) {
      if (kind === "completed" || kind === "failed") stop();
      refresh();
    },
    lost: away,
    back: here,
    over: refresh,
  });
}
