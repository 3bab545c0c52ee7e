// Who serves a model: asked for once the page is there, and again where somebody wants to.

import { ask, parsed, swap } from "./console.js";

const place = () => document.getElementById("providers");

/** Shows a problem in the place of the providers; that nobody answered when there is none to show. */
function failed(problem) {
  const again = place().querySelector("p[data-again]");
  place().querySelector("[data-served]").replaceChildren(problem ?? place().querySelector("template").content.cloneNode(true));
  again.hidden = false;
  again.querySelector("a").removeAttribute("aria-busy");
  place().removeAttribute("aria-busy");
}

async function show(url, asked) {
  place().setAttribute("aria-busy", "true");
  try {
    const answer = await ask(url, { headers: { "X-Fragment": "providers" } });
    if (answer.headers.has("X-Location")) return;
    const html = await answer.text();
    if (answer.ok) swap("providers", html);
    else failed(answer.headers.has("X-Problem") ? parsed(html) : null);
  } catch {
    failed(null);
  }
  // The link that was followed is gone, or another one.
  if (asked) (place().querySelector("p[data-again]:not([hidden]) a") ?? place()).focus();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("#providers [data-again] a, #providers a[data-again]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (place().getAttribute("aria-busy") === "true") return;
  link.setAttribute("aria-busy", "true");
  show(link.href, true);
});

if (place().getAttribute("aria-busy") === "true") show(place().querySelector("p[data-again] a").href, false);
