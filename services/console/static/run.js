// A run as it happens, in a panel that `ui.run_panel` made. The run stands in the address (`?run=…`), so a reload, another tab and the
// way back all show it from its beginning. A form with data-run-form begins one: its handler answers with `run_started`.
//   [data-run-panel=id]       the panel, with [data-run-state] [data-run-wait] [data-run-output] [data-run-ended] [data-run-stop] in it
//   [data-run-stop=question]  asks before it stops the run: "title|sentence|button"
//   form[data-run-form]       sends itself, and the panel of the page follows what it began
//   form[data-keeps]          … and has what was sent again after a reload

import { countDown, isAway, keepTrying } from "./again.js";
import { ask, clearProblems, confirmed, parsed, say, showProblem, unreachable } from "./console.js";
import { following } from "./following.js";

const SETTLED_AFTER_MS = 3000;
const SETTLED_LOOKS = 20;
const RELOADED = "reloaded";
const KINDS = ["started", "text", "reasoning", "output", "snapshot", "completed", "failed"];

/** An element with properties and children. */
function made(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// What a model can answer, each kind in its own form -------------------------------------------------------------------

function link(url, label) {
  // A model may write any address: only those of the web become links.
  return /^https?:/.test(url) ? made("a", { href: url, textContent: label, target: "_blank", rel: "noopener nofollow" }) : made("span", { textContent: label });
}

const shapes = {
  image: (part) => made("figure", {}, shown(made("img", { src: part.url, alt: part.transcript ?? "Picture that the model made" }), part), saved(part)),
  audio: (part) => made("figure", {}, made("audio", { src: part.url, controls: true, preload: "metadata" }), caption(part.transcript), saved(part)),
  video: (part) => made("figure", {}, shown(made("video", { src: part.url, controls: true, preload: "metadata" }), part), saved(part)),
  file: (part) => saved(part),
  tool_call: (part) =>
    made("div", { className: "box info" }, made("strong", { textContent: `The model asks for the tool ${part.name}` }),
      made("pre", { className: "run-tool", tabIndex: 0, textContent: part.arguments === null ? part.arguments_text : JSON.stringify(part.arguments, null, 2) })),
  refusal: (part) => made("div", { className: "box warn" }, made("strong", { textContent: "The model refused" }), made("p", { textContent: part.text })),
  citation: (part) => made("p", { className: "small run-source" }, "Source: ", link(part.url, part.title ?? part.url)),
  other: (part) => made("details", {}, made("summary", { textContent: `Something else: ${part.kind}` }), made("pre", { className: "run-tool", textContent: JSON.stringify(part.data, null, 2) })),
};

/** The place it takes is kept before it has come. */
function shown(element, part) {
  if (part.width && part.height) Object.assign(element, { width: part.width, height: part.height });
  return element;
}

function caption(sentence) {
  return sentence ? made("figcaption", { className: "small", textContent: sentence }) : "";
}

function saved(part) {
  const kind = part.mime_type.split("/").pop().toUpperCase();
  return made("p", { className: "small" }, link(part.url, `Open ${part.filename ?? `the ${part.type}`} (${kind}, ${size(part.bytes)}, new tab)`));
}

/** A number of bytes as people say it. */
export function size(bytes) {
  return bytes < 1024 ? `${bytes} bytes` : bytes < 1024 ** 2 ? `${Math.round(bytes / 1024)} KB` : `${(bytes / 1024 ** 2).toFixed(1)} MB`;
}

// One run --------------------------------------------------------------------------------------------------------------

/** Shows one run at a time in one panel. */
export class Panel {
  constructor(panel) {
    const part = (name) => panel.querySelector(`[data-run-${name}]`);
    this.element = panel;
    this.state = part("state");
    this.output = part("output");
    this.ended = part("ended");
    this.stop = part("stop");
    this.nothing = this.state.textContent;
    this.stop?.addEventListener("click", () => this.cancel());
  }

  /** Shows the run with this id from its beginning, or none. */
  follow(id) {
    this.leave();
    this.id = id;
    this.clear();
    this.ended.replaceChildren();
    this.state.textContent = this.nothing;
    this.doing = this.interrupted = null;
    if (!id) return;
    this.running(true);
    this.tell("Waiting to begin");
    // The first digits of an id are the moment it was made: a reload goes on counting.
    const since = parseInt(id.replace("-", "").slice(0, 12), 16);
    this.clock = setInterval(() => this.tick(Math.max(0, Date.now() - since)), 1000);
    this.last = 0;
    this.unfollow = following(`/executions/${id}/events`, KINDS, {
      heard: (kind, data, number) => {
        this.last = number;
        this.show(kind, data);
      },
      lost: (left_s) => this.lost("The connection is lost, and the run goes on. Trying again", left_s),
      back: () => this.found(),
      over: () => this.end(null),
    });
  }

  leave() {
    this.unfollow?.();
    this.asking?.stop();
    clearInterval(this.clock);
    clearTimeout(this.settling);
    this.running(false);
  }

  clear() {
    this.text = this.thoughts = null;
    this.output.replaceChildren();
  }

  running(on) {
    this.element.classList.toggle("running", on);
    this.output.setAttribute("aria-busy", String(on));
    if (!this.stop) return;
    this.stop.hidden = !on;
    if (on) this.stop.removeAttribute("aria-busy");
  }

  tell(doing) {
    if (this.doing === doing) return;
    this.doing = doing;
    this.seconds = made("span", { className: "number", ariaHidden: "true" });
    this.state.replaceChildren(`${doing}… `, this.seconds);
  }

  tick(passed_ms) {
    if (!this.interrupted) this.seconds.textContent = `${Math.round(passed_ms / 1000)} s`;
  }

  /** What has come stays; what was being done is said again when the connection is back. */
  lost(sentence, left_s) {
    this.interrupted ??= this.doing;
    this.tell(sentence);
    this.seconds.textContent = `in ${left_s} s`;
  }

  found() {
    const doing = this.interrupted;
    this.interrupted = null;
    if (doing) this.tell(doing);
  }

  show(kind, data) {
    if (kind === "started") this.tell("Waiting for the first word");
    else if (kind === "text") this.write(data.text);
    else if (kind === "reasoning") this.think(data.text);
    else if (kind === "output") this.add(data);
    else if (kind === "snapshot") this.replace(data);
    else {
      // What a stopped or finished run has said is all in its result, whatever was missed.
      if (kind === "completed") this.replace(data);
      this.end(this.last);
    }
  }

  write(text) {
    this.tell("Writing");
    if (!this.text) this.output.append((this.text = made("div", { className: "run-text" })));
    this.text.append(text);
  }

  think(text) {
    this.tell("Thinking");
    if (!this.thoughts) {
      this.thoughts = made("div", { className: "run-text muted small" });
      this.output.prepend(made("details", { className: "run-thoughts" }, made("summary", { textContent: "How it thought" }), this.thoughts));
    }
    this.thoughts.append(text);
  }

  add(part) {
    const shape = shapes[part.type] ?? (() => shapes.other({ kind: part.type, data: part }));
    if (part.type === "text") this.write(part.text);
    else this.output.append(shape(part));
  }

  replace({ text, reasoning, outputs }) {
    const open = this.output.querySelector(".run-thoughts")?.open;
    this.clear();
    if (reasoning) this.think(reasoning);
    if (open) this.output.querySelector(".run-thoughts").open = true;
    if (text) this.write(text);
    for (const part of outputs) if (part.type !== "text") this.add(part);
  }

  /** Puts how it ended below it, as soon as that can be asked. `seq` is the number of the last event, null where none came. */
  async end(seq) {
    this.leave();
    const id = this.id;
    const last = seq ?? this.last + 1;
    if (await this.told(id, last)) return;
    this.asking = keepTrying(
      () => this.told(id, last),
      (left_s) => this.lost("It has ended. How it ended cannot be asked now; trying again", left_s),
    );
  }

  /** Whether it could be asked how the run ended; then that stands below it. */
  async told(id, last) {
    const answer = await ask(`/executions/${id}/ended?after=${last - 1}`, { headers: { "X-Fragment": "ended" } }).catch(() => null);
    const html = await answer?.text();
    if (id !== this.id) return true;
    if (!answer || isAway(answer)) return false;
    this.interrupted = null;
    this.fill(html);
    this.element.dispatchEvent(new Event("run-ended"));
    this.state.textContent = this.ended.querySelector("[data-run-word]")?.dataset.runWord ?? "It cannot be shown; see below.";
    if (this.ended.querySelector("[data-run-unsettled]")) this.settle(id, last, SETTLED_LOOKS);
    return true;
  }

  fill(html) {
    this.ended.replaceChildren(parsed(html));
    const again = this.ended.querySelector("[data-run-again]");
    if (again && runForm()) {
      again.hidden = false;
      again.addEventListener("click", () => begin(runForm(), again));
    }
    countDown(this.ended);
  }

  /** Looks again until the cost is known. */
  settle(id, last, looks) {
    this.settling = setTimeout(async () => {
      const answer = await ask(`/executions/${id}/ended?after=${last - 1}`, { headers: { "X-Fragment": "ended" } }).catch(() => null);
      if (id !== this.id) return;
      if (answer?.ok) this.fill(await answer.text());
      if (!this.ended.querySelector("[data-run-unsettled]")) this.element.dispatchEvent(new Event("run-ended"));
      else if (looks > 1) this.settle(id, last, looks - 1);
    }, SETTLED_AFTER_MS);
  }

  async cancel() {
    const question = this.stop.dataset.runStop;
    if (question && !(await confirmed(...question.split("|")))) return;
    if (this.stop.hidden) return;
    this.stop.setAttribute("aria-busy", "true");
    const doing = this.doing;
    this.tell("Stopping");
    try {
      const answer = await ask(`/executions/${this.id}/cancel`, { method: "POST" });
      if (answer.ok) return;
    } catch {
      // Said below.
    }
    this.stop.removeAttribute("aria-busy");
    this.tell(doing);
    say("It was not stopped: the service does not answer. Try again in a moment.");
  }
}

// The panel of this page and the forms that begin runs ------------------------------------------------------------------

const element = document.querySelector("[data-run-panel]");
const panel = element && new Panel(element);

function runForm() {
  return document.querySelector("form[data-run-form]");
}

function runOfAddress() {
  return new URLSearchParams(location.search).get("run") ?? element.dataset.runPanel;
}

// A run that was asked for and not heard of is asked for again under the same key: then it is the same run, and paid for once.
let unanswered = { body: null, key: null };

function keyed(body) {
  const text = body.toString();
  if (unanswered.body !== text) {
    const key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    unanswered = { body: text, key };
  }
  body.set("run_key", unanswered.key);
  return body;
}

function keep(form, run) {
  if (form.matches("[data-keeps]")) sessionStorage.setItem(run, new URLSearchParams(new FormData(form)).toString());
}

function restore(run) {
  const kept = run && sessionStorage.getItem(run);
  const form = kept && document.querySelector("form[data-keeps]");
  if (!form) return;
  const values = new URLSearchParams(kept);
  for (const field of form.querySelectorAll("[name^='input.']")) {
    if (field.type === "checkbox") field.checked = values.has(field.name);
    else field.value = values.get(field.name) ?? "";
    if (field.type === "hidden" && field.value) {
      // The file was sent before and is still there; another one may be chosen.
      field.parentElement.querySelector("[type=file]").required = false;
      field.parentElement.querySelector("[data-upload-state]").textContent = "The file that you sent before is still there.";
    }
  }
}

async function begin(form, button) {
  clearProblems(form);
  button?.setAttribute("aria-busy", "true");
  try {
    const body = keyed(new URLSearchParams(new FormData(form, button?.form === form ? button : null)));
    const answer = await ask(form.action, { method: "POST", body });
    if (!answer.headers.has("X-Unanswered")) unanswered = { body: null, key: null };
    const run = answer.headers.get("X-Run");
    if (run) {
      keep(form, run);
      const address = new URL(location.href);
      address.searchParams.set("run", run);
      history.pushState(null, "", address);
      panel.follow(run);
      element.scrollIntoView({ block: "nearest" });
    } else if (!answer.headers.has("X-Location")) {
      showProblem(form, answer.headers.has("X-Problem") ? await answer.text() : unreachable);
    }
  } catch {
    showProblem(form, unreachable);
  }
  button?.removeAttribute("aria-busy");
}

if (panel) {
  panel.follow(runOfAddress());
  restore(runOfAddress() || RELOADED);
  sessionStorage.removeItem(RELOADED);
  // What was typed comes along to the page as it is now.
  document.addEventListener("click", (event) => event.target.matches("[data-reload]") && keep(runForm(), RELOADED));
  addEventListener("popstate", () => panel.follow(runOfAddress()));
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (!form.matches("form[data-run-form]") || event.defaultPrevented) return;
    event.preventDefault();
    const button = event.submitter ?? form.querySelector("[type=submit]");
    if (button?.getAttribute("aria-busy") !== "true") begin(form, button);
  });
}
