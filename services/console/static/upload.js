// Files in forms: what somebody chooses is sent at once, and its address becomes the value of the field beside it.
//   [data-upload]   a hidden input for the address, a file input, a progress, and [data-upload-state]

import { parsed, unreachable } from "./console.js";
import { size } from "./run.js";

/** Sends a file; `moved` hears percent. Resolves to the upload as the interface describes it, or throws HTML that says why not. */
function send(file, moved) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/uploads");
    request.setRequestHeader("X-Fragment", "-");
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => moved((event.loaded / event.total) * 100);
    request.onerror = () => reject(unreachable);
    request.onload = () => (request.status === 201 ? resolve(JSON.parse(request.response)) : reject(request.response));
    request.send(file);
  });
}

function described(upload) {
  const facts = [upload.width && `${upload.width} × ${upload.height}`, upload.pages && `${upload.pages} pages`, size(upload.bytes)];
  return facts.filter(Boolean).join(", ");
}

async function take(holder, chooser) {
  const [address, bar, state] = [holder.querySelector("[type=hidden]"), holder.querySelector("progress"), holder.querySelector("[data-upload-state]")];
  const error = holder.closest(".field").querySelector(".error");
  const file = chooser.files[0];
  const refuse = (sentence) => {
    error.textContent = sentence;
    chooser.setAttribute("aria-invalid", "true");
    chooser.value = "";
  };
  address.value = state.textContent = error.textContent = "";
  chooser.removeAttribute("aria-invalid");
  if (!file) return;
  if (file.size > Number(chooser.dataset.maxBytes)) return refuse(`This file has ${size(file.size)}; send one of at most ${size(Number(chooser.dataset.maxBytes))}.`);
  const buttons = [...chooser.form.querySelectorAll("[type=submit]")];
  bar.hidden = false;
  buttons.forEach((button) => (button.disabled = true));
  state.textContent = "Sending…";
  try {
    const upload = await send(file, (percent) => (bar.value = percent));
    address.value = upload.url;
    state.textContent = `${file.name} is ready: ${described(upload)}.`;
  } catch (html) {
    state.textContent = "";
    refuse(parsed(html).querySelector("p")?.textContent ?? "It could not be sent; try again.");
  }
  bar.hidden = true;
  buttons.forEach((button) => (button.disabled = false));
  address.dispatchEvent(new Event("input", { bubbles: true }));
}

document.addEventListener("change", ({ target }) => {
  const holder = target.closest("[data-upload]");
  if (holder && target.type === "file") take(holder, target);
});
