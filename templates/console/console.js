// What pages can do better where scripts run. Everything works without.
"use strict";

// Times in the person's own time zone.
const inZone = new Intl.DateTimeFormat("en-GB", {
  day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit",
});
function localize(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!time.title && !Number.isNaN(at.getTime())) {
      time.title = time.textContent;
      time.textContent = inZone.format(at);
    }
  }
}

// What a screen reader says.
function announce(text) { document.getElementById("announcement").textContent = text; }

// Copying.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  // Somebody may press it again before it has its name back. It stays as wide, so that a double click doesn't miss it.
  if (!button.dataset.name) {
    button.dataset.name = button.textContent;
    button.style.minWidth = `${button.offsetWidth}px`;
  }
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it and copy it";
  }
  announce(button.textContent);
  setTimeout(() => { button.textContent = button.dataset.name; }, 2000);
});

function prepare(root) {
  localize(root);
  if (!navigator.clipboard) return;
  for (const button of root.querySelectorAll("button[data-copy]")) button.hidden = false;
}
prepare(document);

// What changes is brought up to date while somebody can see it. The console responds once something has happened, or after a
// while. If nothing responds, the pauses grow.
const SHORTEST = 2000, LONGEST = 60000, LIMIT = 45000;
// Until the page looks again whether it may show what it got. The console responds at once to a page that isn't up to date.
const OCCUPIED = 10000;
const sleep = (time) => new Promise((done) => { setTimeout(done, time); });
function visible() {
  return new Promise((done) => {
    if (!document.hidden) done();
    else document.addEventListener("visibilitychange", () => done(visible()), { once: true });
  });
}
// A window that nobody sees keeps no connection. Browsers have few.
let hidden = new AbortController();
document.addEventListener("visibilitychange", () => {
  hidden.abort();
  hidden = new AbortController();
});
function ask(region) {
  return fetch(region.dataset.live, {
    headers: { "x-live": region.dataset.seen, "if-none-match": region.dataset.tag },
    redirect: "manual", cache: "no-store", signal: AbortSignal.any([hidden.signal, AbortSignal.timeout(LIMIT)]),
  });
}
// The element of the fresh content that takes the place of the one with the focus.
function counterpart(fresh, at) {
  const same = (name, other) => other.getAttribute(name) === at.getAttribute(name);
  return [...fresh.querySelectorAll(at.localName)].find((other) => same("href", other) && same("data-copy", other));
}
// What a screen reader says when it is new.
const said = (region) => [...region.querySelectorAll("[data-announce]")].map((part) => part.textContent);
// Shows the fresh content, unless that would take away what somebody is at or has selected. Returns whether it did.
function show(region, text) {
  const selected = getSelection();
  if (!selected.isCollapsed && selected.containsNode(region, true)) return false;
  const fresh = new DOMParser().parseFromString(text, "text/html").body;
  prepare(fresh);
  const at = region.contains(document.activeElement) ? document.activeElement : null;
  const next = at && counterpart(fresh, at);
  if (at && !next) return false;
  const before = said(region);
  region.replaceChildren(...fresh.childNodes);
  next?.focus({ preventScroll: true });
  const news = said(region).filter((text) => !before.includes(text));
  if (news.length > 0) announce(news.join(" "));
  return true;
}
async function follow(region) {
  let pause = SHORTEST;
  for (;;) {
    await sleep(pause);
    await visible();
    try {
      const response = await ask(region);
      if (response.status === 401 || response.type === "opaqueredirect") {
        location.reload(); // to the form for signing in
        return;
      }
      if (!response.ok && response.status !== 304) throw new Error(response.statusText);
      pause = Math.max(SHORTEST, 1000 * response.headers.get("retry-after"));
      if (response.status === 304 || show(region, await response.text())) {
        region.dataset.seen = response.headers.get("x-live");
        region.dataset.tag = response.headers.get("etag");
      } else {
        pause = Math.max(pause, OCCUPIED);
      }
    } catch {
      // Nobody has been looking, or the network or the service is away for a while.
      pause = document.hidden ? 0 : Math.min(Math.max(2 * pause, SHORTEST), LONGEST);
    }
  }
}
for (const region of document.querySelectorAll("[data-live]")) follow(region);

// Shortcuts. They never get in the way of typing.
const PLACES = new Map([["l", "/links"], ["a", "/attention"], ["b", "/books"]]);
const keys = document.querySelector(".keys"); // not there if they are turned off
if (keys) {
  keys.hidden = false;
  let wentBefore = false;
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const search = document.querySelector("[data-search]");
    const went = wentBefore;
    wentBefore = event.key === "g";
    if (event.key === "/") {
      event.preventDefault();
      if (search) search.focus();
      else location.assign("/links#q");
    } else if (went && PLACES.has(event.key)) {
      location.assign(PLACES.get(event.key));
    }
  });
  if (location.hash === "#q") document.querySelector("[data-search]")?.focus();
}
