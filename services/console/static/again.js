// What fails because a part of the service is away is tried again by itself, until there is an answer.

const PAUSES_S = [1, 2, 3, 5, 8, 13, 20, 30];

/** Whether this answer says that a part of the service is away, or is too busy: the same may succeed later. */
export function isAway(answer) {
  return [429, 502, 503, 504].includes(answer.status);
}

/**
 * Calls `what` after pauses that grow until it comes back true; at once when the page is looked at again, or the network is back.
 * `tell` is given the seconds that are left, every second. `first_s` is how long it waits at least before the first time.
 */
export function keepTrying(what, tell, first_s = 0) {
  const over = new AbortController();
  let tries = 0, left, timer, trying = false;

  function pause() {
    left = Math.max(PAUSES_S[Math.min(tries, PAUSES_S.length - 1)], tries ? 0 : first_s);
    tries += 1;
    tick();
  }

  function tick() {
    if (left <= 0) return void now();
    tell(left);
    left -= 1;
    timer = setTimeout(tick, 1000);
  }

  async function now() {
    if (trying || over.signal.aborted) return;
    clearTimeout(timer);
    trying = true;
    const done = await what();
    trying = false;
    if (over.signal.aborted) return;
    if (done) stop();
    else pause();
  }

  function stop() {
    clearTimeout(timer);
    over.abort();
  }

  addEventListener("online", now, { signal: over.signal });
  document.addEventListener("visibilitychange", () => document.hidden || now(), { signal: over.signal });
  pause();
  return { now, stop };
}

/** A line that says that something is tried again by itself: aloud once, the seconds for the eye alone. */
export function tryingLine(sentence) {
  const line = Object.assign(document.createElement("p"), { className: "small muted" });
  const said = Object.assign(document.createElement("span"), { textContent: sentence });
  const seconds = Object.assign(document.createElement("span"), { className: "number", ariaHidden: "true" });
  line.setAttribute("role", "status");
  line.append(said, " ", seconds);
  return { line, tell: (left) => (seconds.textContent = `Next try in ${left} s.`) };
}

// A page that could not be shown: it comes back by itself, at its own address.
const page = document.querySelector("[data-comes-back]");
if (page) {
  const { line, tell } = tryingLine("This page comes back by itself as soon as there is an answer.");
  page.append(line);
  const back = async () => {
    const answer = await fetch(location.href, { headers: { "X-Fragment": "-" } }).catch(() => null);
    if (!answer || isAway(answer)) return false;
    location.reload();
    return true;
  };
  keepTrying(back, tell, Number(page.dataset.comesBack));
}

/** Counts down what is said of when to try again, and keeps the button that does it until then. */
export function countDown(root) {
  for (const place of root.querySelectorAll("[data-retry-s]")) {
    const button = root.querySelector("[data-run-again]");
    const until = Date.now() + 1000 * Number(place.dataset.retryS);
    if (button) button.disabled = true;
    const timer = setInterval(() => {
      const left = Math.ceil((until - Date.now()) / 1000);
      if (left > 0 && place.isConnected) {
        place.textContent = `Try again in ${left} ${left === 1 ? "second" : "seconds"}.`;
        return;
      }
      clearInterval(timer);
      place.textContent = "You can try again now.";
      if (button) button.disabled = false;
    }, 1000);
  }
}
