// What pages do beyond links and forms. A page asks for it with attributes; no page needs a script of its own for these:
//   form[data-live=block]     a GET form that fetches its block while somebody types, and keeps the address in step
//   form[data-post]           a POST form sent from here: a problem comes to stand in [data-problem], nothing that was typed is lost
//   form[data-post=block]     … and what comes back replaces the element whose id is the block's name
//   a[data-more=block]        the next page of a list: fetched when it comes into view or is followed, put in its place
//   form[data-guard]          asks before somebody leaves with something unsaved in it
//   [data-confirm]            asks before the form is sent, or sent with this button: data-confirm="title|sentence|button"
//   [data-copy] [data-dismiss] [data-menu] [data-theme-choice] [data-sign-in]

import { countDown, isAway, keepTrying, tryingLine } from "./again.js";

const progress = Object.assign(document.createElement("div"), { className: "progress", hidden: true });
document.body.append(progress);
let waiting = 0;

/** Fetches from our own server as the pages understand it; shows that something goes on when it takes a moment. */
export async function ask(url, options = {}) {
  const late = setTimeout(() => (progress.hidden = false), 250);
  waiting += 1;
  try {
    const answer = await fetch(url, { ...options, headers: { "X-Fragment": "-", ...options.headers } });
    const target = answer.headers.get("X-Location");
    if (target === "reload" && unsaved()) say("You are not signed in any more. Sign in again in another tab: what you typed stays here.");
    else if (target === "reload") location.reload();
    else if (target) {
      leaving = options.saves;
      const back = answer.headers.get("X-Back");
      if (back) history.replaceState(null, "", back);
      location.assign(target);
    }
    return answer;
  } finally {
    clearTimeout(late);
    waiting -= 1;
    if (!waiting) progress.hidden = true;
  }
}

/** Says something in the corner, and to screen readers. */
export function say(sentence) {
  const toast = Object.assign(document.createElement("div"), { className: "toast" });
  toast.append(Object.assign(document.createElement("span"), { textContent: sentence }));
  document.querySelector(".toasts").append(toast);
  setTimeout(() => toast.remove(), 6000);
}

// What would be lost ----------------------------------------------------------------------------------------------------

const contents = (form) => new URLSearchParams(new FormData(form)).toString();
const guarded = new Map([...document.querySelectorAll("form[data-guard]")].map((form) => [form, contents(form)]));
let leaving = false;

/** Whether a form with data-guard holds something that is saved nowhere. */
function unsaved() {
  return [...guarded].some(([form, saved]) => contents(form) !== saved);
}

addEventListener("beforeunload", (event) => {
  if (!leaving && unsaved()) event.preventDefault();
});

// What was saved here is out of date when a browser has kept the page as it was.
addEventListener("pageshow", (event) => {
  if (event.persisted && leaving) location.reload();
});

/** Elements out of HTML that our server sent. */
export function parsed(html) {
  const holder = document.createElement("template");
  holder.innerHTML = html;
  return holder.content;
}

/** Puts what came back in the place of the element with this id, without losing where somebody was. */
export function swap(id, html) {
  const focused = document.activeElement?.id;
  const open = [...document.querySelectorAll(`#${CSS.escape(id)} details[id]`)].filter((each) => each.open).map((each) => each.id);
  document.getElementById(id).replaceWith(parsed(html));
  for (const each of open) document.getElementById(each)?.setAttribute("open", "");
  const again = focused && document.getElementById(focused);
  if (again && again !== document.activeElement) again.focus({ preventScroll: true });
}

/** What is shown where no answer came at all. */
export const unreachable = `<div class="box bad" role="alert"><strong>The console cannot be reached</strong>
  <p>Check your connection and try again. What you typed stays here.</p></div>`;

/** Puts a problem above what is there, which stays, and tries `what` again by itself until it comes back true. */
function troubled(place, html, what) {
  place.querySelector(":scope > [data-trouble]")?.remove();
  const { line, tell } = tryingLine("It comes by itself as soon as there is an answer.");
  const box = Object.assign(document.createElement("div"), { className: "stack tight" });
  box.dataset.trouble = "";
  box.append(parsed(html), line);
  place.prepend(box);
  return keepTrying(what, tell);
}

// Forms that search while somebody types ------------------------------------------------------------------------------

for (const form of document.querySelectorAll("form[data-live]")) {
  let running = null;
  let again = null;
  const search = async () => {
    again?.stop();
    const html = await searched();
    if (html) again = troubled(document.getElementById(form.dataset.live), html, async () => !(await searched()));
  };
  /** Null once there is nothing more to do; a problem that may pass as HTML. */
  const searched = async () => {
    running?.abort();
    const mine = (running = new AbortController());
    const filled = [...new FormData(form)].filter(([, value]) => value !== "");
    const query = new URLSearchParams(filled).toString();
    const url = form.getAttribute("action") + (query ? `?${query}` : "");
    const block = form.dataset.live;
    history.replaceState(null, "", url);
    try {
      const answer = await ask(url, { headers: { "X-Fragment": block }, signal: mine.signal });
      const html = await answer.text();
      if (mine.signal.aborted || answer.headers.has("X-Location")) return null;
      if (isAway(answer)) return answer.headers.has("X-Problem") ? html : unreachable;
      if (answer.ok) swap(block, html);
      else document.getElementById(block).replaceChildren(parsed(html));
    } catch (error) {
      return mine.signal.aborted ? null : unreachable;
    }
    watchForMore();
    return null;
  };
  form.addEventListener("input", search);
  form.addEventListener("submit", (event) => (event.preventDefault(), search()));
  form.addEventListener("reset", () => setTimeout(search));
}

// Lists that go on ----------------------------------------------------------------------------------------------------

const coming = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => more(entry.target)),
  { rootMargin: "800px" },
);

function watchForMore() {
  document.querySelectorAll("a[data-more-auto]").forEach((link) => coming.observe(link));
}

const waitingLinks = new WeakMap();

async function more(link) {
  if (waitingLinks.has(link)) return void waitingLinks.get(link).now();
  if (link.getAttribute("aria-busy") === "true") return;
  link.setAttribute("aria-busy", "true");
  coming.unobserve(link);
  if (await loaded(link)) return;
  link.setAttribute("aria-busy", "false");
  const { line, tell } = tryingLine("The rest of the list could not be loaded. It comes by itself as soon as there is an answer.");
  link.after(" ", line);
  waitingLinks.set(link, keepTrying(() => loaded(link), tell));
}

/** Whether the next page stands in the place of the link to it. */
async function loaded(link) {
  const answer = await ask(link.href, { headers: { "X-Fragment": link.dataset.more } }).catch(() => null);
  if (!answer || isAway(answer)) return false;
  const holder = link.closest("[data-more-place]");
  holder?.replaceWith(parsed(await answer.text()));
  watchForMore();
  return true;
}
watchForMore();

// Forms that change something -----------------------------------------------------------------------------------------

/** The field that a path means, or the one around it: in the form, or where the page has it. */
function fieldOf(form, path) {
  for (let at = path; at; at = at.slice(0, Math.max(0, at.lastIndexOf(".")))) {
    const named = `[data-field="${CSS.escape(at)}"]`;
    const field = form.querySelector(named) ?? document.querySelector(`#main ${named}`);
    if (field) return field;
  }
  return null;
}

/** Shows a problem in its form, each wrong field marked. */
export function showProblem(form, html) {
  const place = form.querySelector("[data-problem]") ?? document.querySelector("#main [data-problem]");
  place.replaceChildren(parsed(html));
  countDown(place);
  let first = null;
  for (const wrong of place.querySelectorAll("[data-error-path]")) {
    const field = fieldOf(form, wrong.dataset.errorPath);
    if (!field) continue;
    const said = field.querySelector(".error");
    said.textContent = `${said.textContent} ${wrong.lastElementChild.textContent}`.trim();
    const control = field.querySelector("input:not([type=hidden]), select, textarea, button");
    control?.setAttribute("aria-invalid", "true");
    for (let hiding = field.closest("details"); hiding; hiding = hiding.parentElement.closest("details")) hiding.open = true;
    const label = field.querySelector("label, legend, .label")?.textContent.trim();
    if (label && wrong.children.length > 1) wrong.firstElementChild.replaceWith(label);
    first ??= control;
  }
  if (first) first.focus();
  else place.scrollIntoView({ block: "nearest" });
}

/** Takes away what `showProblem` showed. */
export function clearProblems(form) {
  form.querySelectorAll("[data-problem]").forEach((place) => place.replaceChildren());
  form.querySelectorAll(".error").forEach((place) => (place.textContent = ""));
  form.querySelectorAll("[aria-invalid]").forEach((field) => field.removeAttribute("aria-invalid"));
}

async function send(form, button) {
  clearProblems(form);
  button?.setAttribute("aria-busy", "true");
  try {
    const body = new URLSearchParams(new FormData(form, button));
    const saves = form.hasAttribute("data-guard");
    const answer = await ask(form.action, { method: "POST", body, saves, headers: { "X-Fragment": form.dataset.post || "-" } });
    if (answer.headers.has("X-Location")) return;
    const html = await answer.text();
    if (answer.headers.has("X-Problem") || !answer.ok) showProblem(form, answer.headers.has("X-Problem") ? html : unreachable);
    else if (form.dataset.post) swap(form.dataset.post, html);
  } catch {
    showProblem(form, unreachable);
  }
  button?.removeAttribute("aria-busy");
}

/** Asks whether it is meant; true for yes. */
export function confirmed(title, sentence, yes) {
  const dialog = document.getElementById("ask");
  dialog.querySelector("#ask-title").textContent = title;
  dialog.querySelector("#ask-text").textContent = sentence;
  dialog.querySelector("#ask-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  const question = event.submitter?.dataset.confirm ?? form.dataset.confirm;
  if (!form.hasAttribute("data-post") && !question) return;
  event.preventDefault();
  const button = event.submitter ?? form.querySelector("[type=submit]");
  if (button?.getAttribute("aria-busy") === "true") return;
  if (question && !(await confirmed(...question.split("|")))) return;
  await send(form, button);
});

// Small things --------------------------------------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const target = event.target.closest("[data-copy], [data-dismiss], [data-menu], a[data-more]");
  if (!target) return;
  if (target.matches("[data-copy]")) {
    const source = target.parentElement.querySelector("code, input");
    await navigator.clipboard.writeText(source.value ?? source.textContent);
    target.textContent = "Copied";
    setTimeout(() => (target.textContent = "Copy"), 2000);
  } else if (target.matches("[data-dismiss]")) {
    target.closest(".toast").remove();
  } else if (target.matches("[data-menu]")) {
    const open = document.getElementById("menu").classList.toggle("open");
    target.setAttribute("aria-expanded", String(open));
  } else {
    event.preventDefault();
    more(target);
  }
});

// Moments are written in UTC, as days are counted; pointing at one says the same in the time of whoever reads.
document.addEventListener("pointerover", ({ target }) => {
  const moment = target.closest?.("time[title]:not([data-here])");
  if (!moment) return;
  moment.dataset.here = "";
  moment.title += `\n${new Date(moment.dateTime).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "long" })}`;
});

document.querySelector("[data-theme-choice]")?.addEventListener("change", ({ target }) => {
  document.cookie = `theme=${target.value}; path=/; max-age=${target.value ? 31536000 : 0}; samesite=lax`;
  if (target.value) document.documentElement.dataset.theme = target.value;
  else delete document.documentElement.dataset.theme;
});

// The link of `make run`: the token stands behind the #, which browsers send to nobody, and leaves the address at once.
function signInByLink() {
  const form = document.querySelector("form[data-sign-in]");
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!form || !token) return;
  history.replaceState(null, "", location.pathname + location.search);
  form.elements.token.value = token;
  form.requestSubmit();
}
addEventListener("hashchange", signInByLink);
signInByLink();
