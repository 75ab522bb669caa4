// Keeps the page as the server has it now. Without this script the page is complete, but stands still.
// Fragments arrive as HTML made by the server, where every value is escaped; they are patched into the page node by
// node, so that focus, selection, scrolling and opened details stay.

const RETRY_MS = 15000;
const HIDDEN_MS = 120000;
const QUIET_MS = 700; // phases can pass fast; a screen reader hears where they came to rest

const line = document.getElementById("line");
const announcer = document.getElementById("announce");
let source = null;
let seen = document.body.dataset.seen;
let said = announcement();
let pause = 0;
let rest = 0;

function announcement() {
  return document.querySelector("[data-announce]")?.dataset.announce ?? "";
}

function show(state, text) {
  if (line.textContent !== text) line.textContent = text;
  line.className = `line ${state}`;
}

// --- patching ------------------------------------------------------------------------------------------------------

function patch(from, to) {
  if (from.nodeType !== to.nodeType || from.nodeName !== to.nodeName) {
    from.replaceWith(to);
  } else if (from.nodeType === Node.ELEMENT_NODE) {
    patchAttributes(from, to);
    patchChildren(from, to);
  } else if (from.data !== to.data) {
    from.data = to.data;
  }
}

function patchAttributes(from, to) {
  const mine = (name) => name === "open" || (name === "hidden" && from.matches(".copy"));
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && !mine(name)) from.removeAttribute(name);
  }
  for (const { name, value } of to.attributes) {
    if (from.getAttribute(name) !== value && !mine(name)) from.setAttribute(name, value);
  }
}

// Children with an id are matched by it, wherever they stand; the others by their place among their like.
function patchChildren(from, to) {
  const named = new Map([...from.children].filter((child) => child.id).map((child) => [child.id, child]));
  let place = from.firstChild;
  for (const next of [...to.childNodes]) {
    const known = next.id ? named.get(next.id) : undefined;
    if (known) {
      named.delete(next.id);
      if (known === place) place = place.nextSibling;
      else from.insertBefore(known, place);
      patch(known, next);
    } else if (!next.id && place && !place.id) {
      const old = place;
      place = place.nextSibling;
      patch(old, next);
    } else {
      from.insertBefore(next, place);
    }
  }
  while (place) {
    const old = place;
    place = place.nextSibling;
    old.remove();
  }
}

function receive(event) {
  const fragment = document.createElement("div");
  fragment.innerHTML = JSON.parse(event.data);
  patchChildren(document.getElementById(event.type), fragment);
  if (event.lastEventId) seen = event.lastEventId;
  if (event.type === "live") setClocks();
  offerCopies();
  clearTimeout(rest);
  rest = setTimeout(announce, QUIET_MS);
}

function announce() {
  const words = announcement();
  if (words !== said) announcer.textContent = words;
  said = words;
}

// --- time that is left, and copying ----------------------------------------------------------------------------------

function lasting(seconds) {
  const whole = Math.floor(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

const ends = new WeakMap();

function setClocks() {
  for (const clock of document.querySelectorAll("[data-left]")) {
    ends.set(clock, performance.now() + 1000 * Number(clock.dataset.left));
  }
}

function offerCopies() {
  if (!navigator.clipboard) return; // only where the line is safe
  for (const button of document.querySelectorAll(".copy[hidden]")) button.hidden = false;
}

function tick() {
  for (const clock of document.querySelectorAll("[data-left]")) {
    const left = (ends.get(clock) - performance.now()) / 1000;
    clock.textContent = left > 0 ? `${lasting(left)} left` : "its time is over";
  }
}

async function copy(event) {
  const button = event.target.closest(".copy");
  if (!button) return;
  await navigator.clipboard.writeText(button.dataset.copy);
  announcer.textContent = "Copied";
  button.firstChild.data = "Copied";
  setTimeout(() => (button.firstChild.data = "Copy"), 1500);
}

// --- the stream --------------------------------------------------------------------------------------------------------

function open() {
  clearTimeout(pause);
  if (source && source.readyState !== EventSource.CLOSED) return;
  source = new EventSource(`/page/events?seen=${encodeURIComponent(seen)}`);
  source.onopen = () => show("on", "Live");
  source.onerror = () => {
    show("off", "Not connected, trying again");
    if (source.readyState === EventSource.CLOSED) pause = setTimeout(open, RETRY_MS);
  };
  for (const name of ["live", "history"]) source.addEventListener(name, receive);
}

// A page that nobody looks at leaves its place in the stream to others.
function visibility() {
  clearTimeout(pause);
  if (document.hidden) pause = setTimeout(() => source?.close(), HIDDEN_MS);
  else open();
}

document.addEventListener("click", copy);
setClocks();
offerCopies();
setInterval(tick, 1000);
if (seen !== undefined) {
  document.addEventListener("visibilitychange", visibility);
  addEventListener("pagehide", () => source?.close());
  addEventListener("pageshow", (event) => event.persisted && open());
  open();
}
