// A run as it happens, in a panel that `ui.run_panel` made. The run stands in the address (`?run=…`), so a reload, another tab and the
// way back all show it from its beginning. A form with data-run-form begins one: its handler answers with `run_started`.
//   [data-run-panel=id]       the panel, with [data-run-state] [data-run-wait] [data-run-output] [data-run-ended] [data-run-stop] in it
//   [data-run-stop=question]  asks before it stops the run: "title|sentence|button"
//   form[data-run-form]       sends itself, and the panel of the page follows what it began
//   form[data-keeps]          … and has what was sent again after a reload

import { ask, clearProblems, confirmed, parsed, say, showProblem, unreachable } from "./console.js";

const SETTLED_AFTER_MS = 3000;
const SETTLED_LOOKS = 20;
const ended = new Set(["completed", "failed"]);

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
    this.last = 0;
    this.clear();
    this.ended.replaceChildren();
    this.state.textContent = this.nothing;
    if (!id) return;
    this.running(true);
    this.tell("Waiting to begin");
    // The first digits of an id are the moment it was made: a reload goes on counting.
    const since = parseInt(id.replace("-", "").slice(0, 12), 16);
    this.clock = setInterval(() => this.tick(Math.max(0, Date.now() - since)), 1000);
    this.connect();
  }

  leave() {
    this.source?.close();
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
    if (this.doing === doing && this.seconds !== undefined) return;
    this.doing = doing;
    this.seconds = made("span", { className: "number", ariaHidden: "true" });
    this.state.replaceChildren(`${doing}… `, this.seconds);
  }

  tick(passed_ms) {
    this.seconds.textContent = `${Math.round(passed_ms / 1000)} s`;
  }

  connect() {
    const source = (this.source = new EventSource(`/executions/${this.id}/events?after=${this.last}`));
    for (const kind of ["started", "text", "reasoning", "output", "snapshot", "completed", "failed"]) {
      source.addEventListener(kind, (event) => {
        if (source !== this.source) return;
        this.last = Number(event.lastEventId);
        this.show(kind, JSON.parse(event.data));
      });
    }
    source.addEventListener("error", () => {
      if (source !== this.source || source.readyState !== EventSource.CLOSED) return;
      this.end(null);
    });
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

  /** Puts how it ended below it. `seq` is the number of the last event, null where none came. */
  async end(seq) {
    this.leave();
    const id = this.id;
    const last = seq ?? this.last + 1;
    let html, problem;
    try {
      const answer = await ask(`/executions/${id}/ended?after=${last - 1}`, { headers: { "X-Fragment": "ended" } });
      [html, problem] = [await answer.text(), !answer.ok];
    } catch {
      [html, problem] = [unreachable, true];
    }
    if (id !== this.id) return;
    this.ended.replaceChildren(parsed(html));
    this.element.dispatchEvent(new Event("run-ended"));
    this.state.textContent = this.ended.querySelector("[role=alert]") ? "It did not work; see below." : "Done.";
    if (problem) this.again(() => this.follow(id));
    else if (this.ended.querySelector("[data-run-unsettled]")) this.settle(id, last, SETTLED_LOOKS);
  }

  again(what) {
    this.ended.append(made("button", { className: "button", type: "button", textContent: "Look again", onclick: what }));
  }

  /** Looks again until the cost is known. */
  settle(id, last, looks) {
    this.settling = setTimeout(async () => {
      const answer = await ask(`/executions/${id}/ended?after=${last - 1}`, { headers: { "X-Fragment": "ended" } }).catch(() => null);
      if (id !== this.id) return;
      if (answer?.ok) this.ended.replaceChildren(parsed(await answer.text()));
      if (!this.ended.querySelector("[data-run-unsettled]")) this.element.dispatchEvent(new Event("run-ended"));
      else if (looks > 1) this.settle(id, last, looks - 1);
    }, SETTLED_AFTER_MS);
  }

  async cancel() {
    const question = this.stop.dataset.runStop;
    if (question && !(await confirmed(...question.split("|")))) return;
    if (this.stop.hidden) return;
    this.stop.setAttribute("aria-busy", "true");
    this.tell("Stopping");
    try {
      const answer = await ask(`/executions/${this.id}/cancel`, { method: "POST" });
      if (answer.ok) return;
    } catch {
      // Said below.
    }
    this.stop.removeAttribute("aria-busy");
    say("It could not be stopped; try again.");
  }
}

// The panel of this page and the forms that begin runs ------------------------------------------------------------------

const element = document.querySelector("[data-run-panel]");
const panel = element && new Panel(element);

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
    const body = keyed(new URLSearchParams(new FormData(form, button)));
    const answer = await ask(form.action, { method: "POST", body });
    unanswered = { body: null, key: null };
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
  restore(runOfAddress());
  addEventListener("popstate", () => panel.follow(runOfAddress()));
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (!form.matches("form[data-run-form]") || event.defaultPrevented) return;
    event.preventDefault();
    const button = event.submitter ?? form.querySelector("[type=submit]");
    if (button?.getAttribute("aria-busy") !== "true") begin(form, button);
  });
}
