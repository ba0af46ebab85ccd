"use strict";
// Everything that the store says is set as text: there is no markup in here.
(() => {
  const get = (id) => document.getElementById(id);
  const windows = [1, 2, 5, 10, 20, 40, 60, 120, 240, 480, 960, 1440].map((minutes) => minutes * 60);
  const elections = new Map();
  const cards = new Map();
  const longestLease = new Map();
  let state = null;
  let received = 0;
  let connected = false;
  let whole = true;

  // Seconds on the server's clock, which is all that ages and deadlines refer to.
  const now = () => state.now + (performance.now() - received) / 1000;

  // Each name has the hue that is farthest from those of the names before it.
  const hues = new Map();
  let named = 0;
  let enoughHues = 64;
  const hueOf = (name) => {
    if (!hues.has(name)) hues.set(name, Math.round((55 + named++ * 137.508) % 360));
    return hues.get(name);
  };
  const forgetHues = () => {
    if (hues.size < enoughHues) return;
    const shown = new Set();
    for (const { term, waiting, past } of elections.values()) {
      if (term) shown.add(term.name);
      for (const name of waiting || []) shown.add(name);
      for (const each of past) shown.add(each.name);
    }
    for (const name of hues.keys()) if (!shown.has(name)) hues.delete(name);
    enoughHues = 64 + 2 * hues.size;
  };

  const lasting = (seconds) => {
    const s = Math.max(0, Math.floor(seconds));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor(s / 60) % 60).padStart(2, "0")} min`;
    return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
  };
  const spanName = (seconds) => (seconds < 3600 ? `${seconds / 60} min` : `${seconds / 3600} h`);
  const atLeast = (exactly, text) => (exactly ? text : `over ${text}`);
  const clockAt = (at) =>
    new Date(Date.now() - (now() - at) * 1000).toLocaleTimeString([], { hour12: false });

  const put = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  const addCard = (key) => {
    const article = get("card").content.firstElementChild.cloneNode(true);
    const cut = key.lastIndexOf("/") + 1;
    put(article.querySelector(".above"), key.slice(0, cut));
    put(article.querySelector(".name"), key.slice(cut));
    const parts = { article };
    for (const name of ["leader", "mark", "value", "aging", "age", "token", "lease", "left", "gauge", "line", "from"]) {
      parts[name] = article.querySelector(`.${name}`);
    }
    parts.queue = article.querySelector(".queue ol");
    parts.queueNote = article.querySelector(".queue p");
    parts.details = article.querySelector("details");
    parts.past = article.querySelector("tbody");
    cards.set(key, parts);
    const after = [...cards.keys()].sort().find((other) => other > key);
    get("elections").insertBefore(article, after ? cards.get(after).article : null);
    return parts;
  };

  const showElection = (election) => {
    const parts = cards.get(election.key) || addCard(election.key);
    const { term } = election;
    parts.article.classList.toggle("unled", !term);
    put(parts.value, term ? term.name : "nobody leads");
    parts.value.title = term ? term.name : "";
    parts.mark.style.setProperty("--hue", term ? hueOf(term.name) : 0);
    put(parts.aging, term ? "term age" : "no leader for");
    put(parts.token, term ? term.token : "–");
    parts.token.classList.toggle("long", Boolean(term) && term.token.length > 9);
    showQueue(parts, election);
    showPast(parts, election);
    parts.drawn = null;
  };

  const showQueue = (parts, { waiting, waiting_count: count }) => {
    parts.queue.replaceChildren(
      ...(waiting || []).map((name) => {
        const item = make("li");
        item.append(make("bdi", "", name));
        item.title = name;
        item.style.setProperty("--hue", hueOf(name));
        return item;
      }),
    );
    if (waiting && count > waiting.length) {
      parts.queue.append(make("li", "rest", `and ${count - waiting.length} more`));
    }
    parts.queue.hidden = !count;
    put(parts.queueNote, waiting === null ? "not told by this store" : count ? "" : "nobody");
  };

  const showPast = (parts, { past }) => {
    parts.details.hidden = !past.length;
    put(parts.details.querySelector("summary"), `past terms (${past.length})`);
    parts.past.replaceChildren(
      ...past.map((term) => {
        const row = make("tr");
        const name = make("td");
        name.append(make("bdi", "", term.name));
        const known = term.began_exactly && term.ended_exactly;
        row.append(
          name,
          make("td", "", term.token),
          make("td", "", (term.began_exactly ? "" : "before ") + clockAt(term.began)),
          make("td", "", (known ? "" : "~ ") + lasting(term.ended - term.began)),
        );
        return row;
      }),
    );
  };

  // --- what moves with time ---

  const drawLine = (parts, election, at) => {
    const age = at - state.since;
    let scale = windows.findIndex((each) => each >= age);
    if (scale < 0) scale = windows.length - 1;
    const span = windows[scale];
    const width = parts.line.clientWidth || 300;
    // Not for less than half a pixel.
    const drawn = `${scale}:${Math.floor((at / span) * width * 2)}:${width}`;
    if (parts.drawn === drawn) return;
    parts.drawn = drawn;
    const place = (element, from, to) => {
      const left = Math.max(0, (from - (at - span)) / span);
      const right = Math.min(1, (to - (at - span)) / span);
      if (right <= 0) return null;
      element.style.left = `${left * 100}%`;
      element.style.width = `${Math.max(0, right - left) * 100}%`;
      if ((right - left) * width < 56) element.classList.add("narrow");
      return element;
    };
    const terms = [...election.past].reverse();
    if (election.term) terms.push(election.term);
    const first = terms.length ? terms[0].began : at;
    const pieces = [place(make("i", "known"), first, at)];
    const words = [];
    for (const term of terms) {
      const until = term.ended === null ? at : term.ended;
      const piece = make("span", "term", term.name);
      const exactly = term.began_exactly && term.ended_exactly;
      const told = `${term.name}, token ${term.token}, ${atLeast(exactly, lasting(until - term.began))}`;
      piece.title = told;
      piece.style.setProperty("--hue", hueOf(term.name));
      const placed = place(piece, term.began, until);
      if (placed) words.push(told);
      pieces.push(placed);
    }
    if (state.cut_since !== null) pieces.push(place(make("i", "cut"), state.cut_since, at));
    parts.line.replaceChildren(...pieces.filter(Boolean));
    parts.line.setAttribute("aria-label", `terms of the last ${spanName(span)}: ${words.join("; ") || "none"}`);
    put(parts.from, `${spanName(span)} ago`);
  };

  const showLease = (parts, election, at) => {
    const ends = election.term ? state.ends.get(election.lease) : undefined;
    const told = ends !== undefined;
    parts.gauge.hidden = !told;
    parts.left.classList.toggle("untold", !told);
    if (!told) {
      put(parts.left, !election.term ? "–" : election.lease ? "not known now" : "not told by this store");
      return;
    }
    const left = Math.max(0, ends - at);
    const longest = Math.max(longestLease.get(election.key) || 0, left);
    longestLease.set(election.key, longest);
    put(parts.left, `${left.toFixed(1)} s`);
    parts.gauge.firstElementChild.style.width = `${longest ? (100 * left) / longest : 0}%`;
    parts.gauge.classList.toggle("low", left < longest * 0.25);
  };

  const tick = () => {
    if (!state || document.hidden) return;
    const at = now();
    for (const [key, parts] of cards) {
      if (parts.article.hidden) continue;
      const election = elections.get(key);
      const { term } = election;
      const last = election.past[0];
      if (term) put(parts.age, atLeast(term.began_exactly, lasting(at - term.began)));
      else put(parts.age, last ? lasting(at - last.ended) : "–");
      showLease(parts, election, at);
      drawLine(parts, election, at);
    }
  };

  // --- the whole page ---

  const showSums = () => {
    const all = [...elections.values()];
    const led = all.filter((each) => each.term).length;
    const waits = all.filter((each) => each.waiting !== null);
    const known = all.length > 0 || state.cut_since === null;
    const number = (count) => (known ? String(count) : "–");
    put(get("count"), number(all.length + state.left_out));
    put(get("counted"), all.length + state.left_out === 1 ? "election" : "elections");
    put(get("led"), number(led));
    put(get("unled"), number(all.length - led));
    get("unled-box").classList.toggle("some-unled", led < all.length);
    put(get("waiters"), waits.length || !all.length ? number(waits.reduce((sum, each) => sum + each.waiting_count, 0)) : "?");
    get("none").hidden = all.length > 0 || state.cut_since !== null;
    get("more").hidden = !state.left_out;
    put(get("more"), `${state.left_out} more elections are not shown: give a longer prefix.`);
    document.title = all.length > led ? `(${all.length - led}) leadership` : "leadership";
    const notes = [`Seen since ${clockAt(state.since)}; a store keeps no past, so what was before is hatched.`];
    if (all.some((each) => each.waiting === null)) notes.push("This store does not tell who waits.");
    if (all.some((each) => each.term && !each.lease)) notes.push("This store does not tell how long a lease still lasts.");
    notes.push("This page only reads.");
    put(get("notes"), notes.join(" "));
  };

  const showLink = () => {
    const link = get("link");
    const cut = state && state.cut_since !== null;
    link.className = `link ${connected ? (cut ? "cut" : "live") : ""}`;
    put(link, connected ? (cut ? "cut off from the store" : "live") : "connecting again");
    document.body.classList.toggle("stale", !connected || Boolean(cut));
    const trouble = get("trouble");
    trouble.hidden = !(connected && cut && state.trouble);
    if (state && cut) put(trouble, `Cut off since ${clockAt(state.cut_since)}: ${state.trouble}. ${elections.size ? "What is shown is what was known before." : "Nothing is known of elections yet."}`);
  };

  const applyFilter = () => {
    const wanted = get("filter").value.toLowerCase();
    for (const [key, parts] of cards) {
      const { term, waiting } = elections.get(key);
      const texts = [key, term ? term.name : "", ...(waiting || [])];
      parts.article.hidden = !texts.some((text) => text.toLowerCase().includes(wanted));
    }
  };

  const take = (message) => {
    // Not an object: a lease may be called as what every object has.
    state = { ...message, ends: new Map(Object.entries(message.ends)) };
    received = performance.now();
    if (whole) {
      const present = new Set(message.changed.map((each) => each.key));
      message.gone = [...elections.keys()].filter((key) => !present.has(key));
    }
    for (const key of message.gone) {
      elections.delete(key);
      longestLease.delete(key);
      cards.get(key)?.article.remove();
      cards.delete(key);
    }
    for (const election of message.changed) {
      const before = elections.get(election.key);
      elections.set(election.key, election);
      showElection(election);
      if (before && before.term?.token !== election.term?.token) announce(election);
    }
    whole = false;
    showSums();
    showLink();
    applyFilter();
    forgetHues();
    tick();
  };

  const announce = (election) => {
    const { article } = cards.get(election.key);
    article.classList.remove("changed");
    void article.offsetWidth;
    article.classList.add("changed");
    longestLease.delete(election.key);
    put(get("spoken"), `${election.key}: ${election.term ? `${election.term.name} leads` : "nobody leads"}`);
  };

  const connect = () => {
    const source = new EventSource(`${location.pathname.replace(/\/+$/, "")}/events`);
    source.onopen = () => {
      connected = true;
      whole = true;
      showLink();
    };
    source.onmessage = (event) => take(JSON.parse(event.data));
    source.onerror = () => {
      connected = false;
      showLink();
      // It tries again by itself, unless it was refused.
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
    };
  };

  get("filter").addEventListener("input", applyFilter);
  document.addEventListener("visibilitychange", tick);
  setInterval(tick, 200);
  connect();
})();
