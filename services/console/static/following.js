// The events of a run or a workflow, to the last one, whatever breaks in between: the console, the service behind it, the network.
// `pages/streams.py` says `here` when it is connected to the service and `away` when it cannot be.

import { keepTrying } from "./again.js";

const QUIET_MS = 500;

/**
 * Follows `path` from behind event number `after`. `heard(kind, data, number)` gets each event of `kinds` once; `lost(seconds)` is told while
 * nothing answers, `back()` when it goes on, `over()` when there is nothing more to hear. Returns how to stop.
 */
export function following(path, kinds, { after = 0, heard, lost, back, over }) {
  let source, last = after, retry = null, stopped = false;

  /** True once it is connected, or there is nothing more; false when it has to be tried again. */
  const opened = () =>
    new Promise((resolve) => {
      const mine = (source = new EventSource(`${path}?after=${last}`));
      let here = false;
      const arrived = () => {
        if (here || stopped) return;
        here = true;
        if (retry) back();
        retry = null;
        resolve(true);
      };
      mine.addEventListener("here", arrived);
      for (const kind of kinds) {
        mine.addEventListener(kind, (event) => {
          if (stopped) return;
          arrived();
          last = Number(event.lastEventId);
          heard(kind, JSON.parse(event.data), last);
        });
      }
      mine.addEventListener("away", () => (mine.close(), resolve(false)));
      mine.addEventListener("error", () => {
        const closed = mine.readyState === EventSource.CLOSED;
        mine.close();
        if (stopped) return;
        if (!closed && here) setTimeout(open, QUIET_MS);
        resolve(closed);
        if (closed) over();
      });
    });

  async function open() {
    if (!stopped && !(await opened()) && !stopped) retry = keepTrying(opened, lost);
  }

  open();
  return function stop() {
    stopped = true;
    source.close();
    retry?.stop();
  };
}
