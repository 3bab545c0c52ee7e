// What the running steps of a workflow say, as it comes. Each has a panel like any other run; the page around it is replaced whenever
// a step has changed, so panels are kept by their runs and put back where they belong.
//   [data-run-live=id]   the place of a step that runs: the parts of a panel; data-said names the details that tell it in the end

import { Panel } from "./run.js";

// A browser opens six connections to one server: more that stay open would leave none for anything else.
const MOST = 3;
const panels = new Map();

/** The end of a step is told by the page, not by its panel. */
class StepPanel extends Panel {
  end() {
    this.leave();
  }
}

/** Brings the panels in line with the page: for every step that runs, as far as connections go. */
export function showLive() {
  const places = [...document.querySelectorAll("[data-run-live]")];
  const running = new Set(places.map((place) => place.dataset.runLive));
  for (const [id, panel] of panels) {
    if (running.has(id)) continue;
    panel.leave();
    panels.delete(id);
    // Who has read along reads on.
    const said = document.getElementById(panel.element.dataset.said);
    if (said) said.open = true;
  }
  for (const place of places) {
    const id = place.dataset.runLive;
    if (panels.has(id)) place.replaceWith(panels.get(id).element);
    else if (panels.size < MOST) {
      const panel = new StepPanel(place);
      panels.set(id, panel);
      panel.follow(id);
    }
  }
}
