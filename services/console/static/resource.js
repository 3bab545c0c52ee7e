// The form of a resource: variables of the prompt become inputs, a dialog picks models, and price and test fields follow what is
// typed. Everything that is shown comes from the server; here is only what cannot wait for it.

import { ask, clearProblems, parsed, say, swap } from "./console.js";

const QUIET_MS = 350;
// The same names as in contracts/templates.py.
const VARIABLE = /\{\{[ \t\r\n]*([A-Za-z_][A-Za-z0-9_]{0,63})[ \t\r\n]*\}\}/g;
const ATTACHED = ["image", "file", "audio"];

const draft = document.getElementById("draft");
const test = document.getElementById("test");
const rows = document.getElementById("rows");
const picker = document.getElementById("picker");

/** Runs `what` once nothing has called for a moment. */
function later(what) {
  let timer;
  return () => (clearTimeout(timer), (timer = setTimeout(what, QUIET_MS)));
}

// Parts of the page, as what is typed makes them ------------------------------------------------------------------------

const asked = {};

/** The block of this name from the server; null where it cannot be had or is already out of date. */
async function part(block) {
  asked[block]?.abort();
  const mine = (asked[block] = new AbortController());
  try {
    const body = new URLSearchParams(new FormData(draft));
    const answer = await ask("/resources/part", { method: "POST", body, signal: mine.signal, headers: { "X-Fragment": block } });
    const html = await answer.text();
    return answer.ok && !answer.headers.has("X-Problem") && !mine.signal.aborted ? html : null;
  } catch {
    return null;
  }
}

async function updateEstimate() {
  document.getElementById("estimate").setAttribute("aria-busy", "true");
  const html = await part("estimate");
  if (html) swap("estimate", html);
}

const shownFields = new Map();

/** The fields of the test: those that stay as they were declared keep what is in them. */
async function updateTrial() {
  const html = await part("trial");
  if (!html) return;
  const before = new Map([...document.querySelectorAll("#trial [data-field]")].map((field) => [field.dataset.field, field]));
  const now = parsed(html);
  for (const field of now.querySelectorAll("[data-field]")) {
    const name = field.dataset.field;
    const written = field.outerHTML;
    if (before.has(name) && shownFields.get(name) === written) field.replaceWith(before.get(name));
    shownFields.set(name, written);
  }
  document.getElementById("trial").replaceWith(now);
}

for (const field of document.querySelectorAll("#trial [data-field]")) shownFields.set(field.dataset.field, field.outerHTML);

const inputsOf = () => JSON.stringify([...new FormData(draft)].filter(([name]) => name.startsWith("inputs.")));
let inputs = inputsOf();

const follow = later(() => {
  updateEstimate();
  if (inputs === inputsOf()) return;
  inputs = inputsOf();
  updateTrial();
});

// Inputs ----------------------------------------------------------------------------------------------------------------

const nameOf = (row) => row.querySelector('input[name$=".name"]');
const typeOf = (row) => row.querySelector('select[name$=".type"]');

function number() {
  [...rows.children].forEach((row, at) => {
    for (const element of row.querySelectorAll("*")) {
      for (const attribute of ["id", "name", "for", "aria-describedby", "data-field"]) {
        const value = element.getAttribute(attribute);
        if (value) element.setAttribute(attribute, value.replace(/inputs\.(\d+|__n__)(?=[.\s]|$)/g, `inputs.${at}`));
      }
    }
    const field = row.querySelector("fieldset");
    field.dataset.field = `inputs.${at}`;
  });
  document.getElementById("no-rows").hidden = rows.children.length > 0;
}

/** Puts a row before its neighbour or behind it; whoever moved it stays at the button. */
function move(row, step, button) {
  const neighbour = step < 0 ? row.previousElementSibling : row.nextElementSibling;
  if (!neighbour) return;
  if (step < 0) neighbour.before(row);
  else neighbour.after(row);
  number();
  button.focus();
  const at = [...rows.children].indexOf(row) + 1;
  document.getElementById("rows-said").textContent = `Input ${nameOf(row).value}: now number ${at} of ${rows.children.length}.`;
  follow();
}

function addRow(name) {
  const row = document.getElementById("row").content.firstElementChild.cloneNode(true);
  nameOf(row).value = name;
  rows.append(row);
  number();
  label(row);
  return row;
}

function label(row) {
  const name = nameOf(row).value.trim();
  row.querySelector("[data-row-name]").textContent = name || "without a name";
  for (const said of row.querySelectorAll("[data-of-row]")) said.textContent = ` input ${name}`;
  row.dataset.type = typeOf(row).value;
}

function variables() {
  const texts = [...draft.querySelectorAll("[data-template]")].map((area) => area.value).join("\n");
  return new Set([...texts.matchAll(VARIABLE)].map((found) => found[1]));
}

/** Which rows no prompt uses. */
function mark() {
  const used = variables();
  for (const row of rows.children) {
    const name = nameOf(row).value.trim();
    row.querySelector("[data-row-unused]").hidden = !name || used.has(name) || ATTACHED.includes(typeOf(row).value);
  }
}

/** A row for every variable; one that came by itself and that nobody touched goes with its variable. */
function declare() {
  const used = variables();
  const gone = [...rows.querySelectorAll("[data-by-itself]")].filter((row) => !used.has(nameOf(row).value));
  gone.forEach((row) => row.remove());
  const declared = new Set([...rows.children].map((row) => nameOf(row).value.trim()));
  const missing = [...used].filter((name) => !declared.has(name));
  for (const name of missing) addRow(name).dataset.byItself = "";
  if (gone.length || missing.length) number();
  if (missing.length) document.getElementById("rows-said").textContent = `Input ${missing.join(", ")} added.`;
  mark();
}

const declareSoon = later(() => (declare(), follow()));

// What somebody does ----------------------------------------------------------------------------------------------------

draft.addEventListener("input", (event) => {
  const row = event.target.closest("[data-input-row]");
  if (row) {
    delete row.dataset.byItself;
    label(row);
    mark();
  }
  if (event.target.matches("[data-template]")) declareSoon();
  else follow();
});

draft.addEventListener("click", (event) => {
  const button = event.target.closest("button[type=button]");
  if (!button) return;
  const row = button.closest("[data-input-row]");
  if (button.matches("[data-add-row]")) {
    nameOf(addRow("")).focus();
  } else if (button.matches("[data-remove-row]")) {
    row.remove();
    number();
    document.querySelector("[data-add-row]").focus();
    follow();
  } else if (button.matches("[data-move-row]")) {
    move(row, Number(button.dataset.moveRow), button);
  } else if (button.matches("[data-insert-row]")) {
    const area = draft.elements.namedItem("openrouter_config.prompt_template");
    area.setRangeText(`{{${nameOf(row).value.trim()}}}`, area.selectionStart, area.selectionEnd, "end");
    area.focus();
    area.dispatchEvent(new Event("input", { bubbles: true }));
  } else if (button.matches("[data-remove-fallback]")) {
    button.closest("li").remove();
    renew("choose-fallback");
  } else if (button.matches("[data-choose]")) {
    choose(button.dataset.choose);
  }
});

// A test is of what stands in the form now.
test.addEventListener("submit", () => clearProblems(draft), { capture: true });
test.addEventListener("formdata", (event) => {
  for (const [name, value] of new FormData(draft)) event.formData.append(name, value);
});

// The answer of a test can be what buyers see as the example.
const answer = document.querySelector("[data-run-panel]");
const example = document.getElementById("as-example");
const answered = () => answer.querySelector("[data-run-output] > .run-text")?.textContent ?? "";
answer.addEventListener("run-ended", () => (example.hidden = !answered()));
test.addEventListener("submit", () => (example.hidden = true));
example.addEventListener("click", () => {
  const field = draft.elements.namedItem("example_output");
  field.value = answered();
  field.scrollIntoView({ block: "center" });
  field.focus();
});

// A key that was connected in another tab meanwhile.
document.addEventListener("visibilitychange", async () => {
  const missing = document.getElementById("no-key");
  if (!missing || document.hidden) return;
  const page = await fetch(location.href).catch(() => null);
  if (!page?.ok || page.redirected || parsed(await page.text()).getElementById("no-key")) return;
  missing.remove();
  clearProblems(test);
  say("Your key is connected: now you can test.");
});

// Models ----------------------------------------------------------------------------------------------------------------

const search = document.getElementById("pick-q");
let choosing = "model";
const begun = new URLSearchParams(new FormData(draft)).toString();

async function find() {
  asked.found?.abort();
  const mine = (asked.found = new AbortController());
  try {
    const url = `/resources/models?${new URLSearchParams({ q: search.value })}`;
    const answer = await ask(url, { headers: { "X-Fragment": "found" }, signal: mine.signal });
    const html = await answer.text();
    if (!mine.signal.aborted && !answer.headers.has("X-Location")) answer.ok ? swap("found", html) : document.getElementById("found").replaceChildren(parsed(html));
  } catch (error) {
    if (error.name !== "AbortError") document.getElementById("found").textContent = "The models cannot be had; check your connection and write again.";
  }
}

function choose(what) {
  choosing = what;
  picker.querySelector("h2").textContent = what === "model" ? "Choose a model" : "Choose a fallback model";
  search.value = "";
  picker.showModal();
  search.focus();
  find();
}

/** The model's part of the form anew, with what was typed in it. */
async function renew(focused) {
  const html = await part("model");
  if (html) swap("model", html);
  document.getElementById(focused)?.focus();
  follow();
}

function hidden(name, value) {
  return Object.assign(document.createElement("input"), { type: "hidden", name, value });
}

async function pick(id) {
  picker.close();
  const model = draft.elements.namedItem("openrouter_config.model_id");
  if (choosing === "model" && !model.value && new URLSearchParams(new FormData(draft)).toString() === begun) {
    // Nothing is written yet: the page of this model has what suits it in its fields.
    location.assign(`/resources/new?${new URLSearchParams({ model: id })}`);
    return;
  }
  const place = document.getElementById("model");
  if (choosing === "model") {
    model.value = id;
  } else {
    const taken = place.querySelectorAll('input[name^="openrouter_config.fallback_models."]').length;
    place.append(hidden(`openrouter_config.fallback_models.${taken + 10}`, id));
  }
  await renew(choosing === "model" ? "choose-model" : "choose-fallback");
}

search.addEventListener("input", find);
search.addEventListener("keydown", (event) => {
  const first = picker.querySelector("[data-pick]");
  if (event.key === "Enter" && first) (event.preventDefault(), pick(first.dataset.pick));
  if (event.key === "ArrowDown" && first) (event.preventDefault(), first.focus());
});
picker.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !event.target.matches("[data-pick]")) return;
  event.preventDefault();
  const all = [...picker.querySelectorAll("[data-pick]")];
  (all[all.indexOf(event.target) + step] ?? search).focus();
});
picker.addEventListener("click", (event) => {
  if (event.target === picker || event.target.closest("[data-close-picker]")) picker.close();
  const picked = event.target.closest("[data-pick]");
  if (picked) pick(picked.dataset.pick);
});

mark();
