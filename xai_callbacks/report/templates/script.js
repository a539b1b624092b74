"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const find = (what, within = document) => within.querySelector(what);
  const cards = [...document.querySelectorAll(".card")];
  const last = data.stops.length - 1, several = data.names.length > 1;
  const state = { asked: 0, other: 1, at: cards.map(() => last) };
  const value = (id) => find("#" + id)?.value ?? "";
  const put = (tag, text, kind) => Object.assign(document.createElement(tag), { textContent: text, className: kind ?? "" });
  root.classList.add("scripted");
  root.dataset.view = "side";

  // ---- pictures: drawn when they come into view, and again when what they show has changed
  const near = new Set(), stale = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      near[isIntersecting ? "add" : "delete"](target);
      if (isIntersecting && stale.delete(target)) draw(target);
    }
  }, { rootMargin: "200px" });
  const changed = (card) => (near.has(card) ? draw(card) : stale.add(card));
  const changedAll = () => cards.forEach(changed);

  function draw(card) {
    const at = cards.indexOf(card), stop = state.at[at], here = data.cards[at];
    const told = here.told[stop], heat = here.heat[stop];
    const sides = several ? [["a", 0], ["b", state.other]] : [["a", 0]];
    for (const [side, model] of sides) {
      const { says, tone, when, asked, doubt } = told[model], grey = doubt[state.asked] ?? "";
      show(card, side, heat[model][state.asked], `Heat of ${data.names[model]}, ${when}, ${asked[state.asked] ?? ""}`);
      find(`.${side} .stage`, card).classList.toggle("doubt", grey !== "");
      const line = [when, asked[state.asked], grey && "grey: " + grey].filter(Boolean).join(" · ");
      const said = put("span", tone === "plain" ? says && "says " + says : tone + (says && ": " + says), "said " + tone);
      find(`.${side} figcaption`, card).replaceChildren(...(several ? [chip(model), " "] : []), said, put("small", line));
    }
    if (several) {
      const [a, b] = [told[0], told[state.other]], other = data.letters[state.other];
      const place = heat[data.names.length + state.other - 1][state.asked];
      show(card, "d", place, `Heat of ${other} less heat of A, ${data.stops[stop]}`);
      const asked = [a, b].map((each) => each.asked[state.asked] ?? "");
      const line = asked[0] === asked[1] ? asked[0] : `A was asked ${asked[0]} · ${other} ${asked[1]}`;
      find(".d figcaption", card).replaceChildren(put("b", `Heat of ${other} less heat of A`), put("small", line));
    }
    const slider = find(".epoch input", card);
    if (slider) {
      slider.value = stop;
      slider.setAttribute("aria-valuetext", (find(".epoch output", card).textContent = data.stops[stop]));
    }
  }

  function show(card, side, place, words) {
    const image = find(`.${side} img`, card);
    image.src = "data:image/webp;base64," + data.images[place];
    const about = [card.dataset.name, card.dataset.class].filter(Boolean).join(", ");
    image.alt = `${about}. ${words}: ${data.placeWords[data.places[place]]}`;
  }

  const chip = (model) => put("span", data.letters[model], "chip s" + (model % 8));

  // ---- what to show
  function move(card, stop) {
    state.at[cards.indexOf(card)] = Math.min(Math.max(stop, 0), last);
    changed(card);
  }
  function moveAll(stop) {
    state.at.fill(stop);
    const slider = find("#epoch");
    if (slider) {
      slider.value = stop;
      slider.setAttribute("aria-valuetext", (slider.nextElementSibling.textContent = data.stops[stop]));
    }
    changedAll();
  }
  function setView(name) {
    root.dataset.view = name;
    find(`[name=view][value=${name}]`).checked = true;
  }
  function ask(place) {
    state.asked = place;
    if (find("#asked")) find("#asked").value = place;
    changedAll();
    arrange();
  }
  const showHeat = (on) => root.classList.toggle("plain", !(find("#heat").checked = on));
  const on = (what, event, act) => find(what)?.addEventListener(event, (given) => act(given.target, given));
  on("#asked", "change", (from) => ask(Number(from.value)));
  on("#other", "change", (from) => { state.other = Number(from.value); relabel(); changedAll(); arrange(); });
  on("#view", "change", (from) => setView(from.value));
  on("#epoch", "input", (from) => moveAll(Number(from.value)));
  on("#heat", "change", (from) => showHeat(from.checked));
  function relabel() {
    const letter = data.letters[state.other];
    for (const each of find("#answer").options) if (each.value.startsWith("1 ")) each.text = letter + each.value.slice(1);
    find("#of").options[1].text = letter;
    find("#of").options[2].text = letter + " − A";
  }

  // ---- filter and sort
  function measure(at) {
    const by = value("sort"), pair = state.other - 1, of = value("of") || "0";
    if (by === "says") return data.says[pair][at];
    if (by === "why") return data.why[pair][state.asked]?.[at];
    const columns = data.values[by];
    const get = (model) => columns?.[model]?.[at] ?? null;
    if (of !== "d") return get(of === "1" ? state.other : 0);
    return get(0) === null || get(state.other) === null ? null : get(state.other) - get(0);
  }
  function fits(card, at, measured) {
    const kind = value("answer"), [side, tone] = kind.split(" ");
    const told = data.cards[at].told[last], least = value("least");
    return (!value("class") || card.dataset.class === value("class"))
      && (!value("group") || card.dataset.group === value("group"))
      && (!kind || (tone ? told[side === "0" ? 0 : state.other].tone === tone : data.flips[state.other - 1][kind].includes(at)))
      && (least === "" || !value("sort") || (measured ?? -Infinity) >= Number(least));
  }
  function arrange() {
    const by = value("sort"), sign = Number(value("order"));
    const found = cards.map((card, at) => ({ card, at, measured: measure(at) ?? null }));
    for (const { card, at, measured } of found) {
      card.hidden = !fits(card, at, measured);
      find(".value", card).textContent = measured === null ? "" : measured.toPrecision(3);
    }
    if (["name", "class", "group"].includes(by)) found.sort((a, b) => a.card.dataset[by].localeCompare(b.card.dataset[by]));
    else if (by) found.sort((a, b) => (a.measured === null) - (b.measured === null) || sign * (a.measured - b.measured) || a.at - b.at);
    const focused = document.activeElement; // lost where its card is moved
    find("#cards").append(...found.map((each) => each.card));
    focused.focus({ preventScroll: true });
    const shown = cards.filter((card) => !card.hidden);
    find("#count").textContent = `${shown.length} of ${cards.length} probes`;
    rove(shown.includes(find(".card[tabindex='0']")) ? find(".card[tabindex='0']") : find(".card:not([hidden])"));
  }
  for (const id of ["class", "group", "answer", "sort", "of", "order"]) on("#" + id, "change", arrange);
  on("#least", "input", arrange);
  on("#reset", "click", () => {
    for (const each of document.querySelectorAll("#class, #group, #answer, #sort, #least")) each.value = "";
    showHeat(true);
    moveAll(last);
    ask(0);
  });

  // ---- keyboard
  function rove(card) {
    for (const each of cards) each.tabIndex = each === card ? 0 : -1;
  }
  find("#cards").addEventListener("keydown", (event) => {
    const card = event.target;
    if (!card.classList.contains("card") || event.ctrlKey || event.metaKey || event.altKey) return;
    const shown = [...document.querySelectorAll(".card:not([hidden])")], at = shown.indexOf(card);
    const views = ["side", "swipe", "difference"], epoch = state.at[cards.indexOf(card)];
    const keys = {
      ArrowRight: () => shown[at + 1]?.focus(), ArrowLeft: () => shown[at - 1]?.focus(),
      Home: () => shown[0].focus(), End: () => shown.at(-1).focus(),
      ArrowUp: () => move(card, epoch + 1), ArrowDown: () => move(card, epoch - 1),
      v: () => several && setView(views[(views.indexOf(root.dataset.view) + 1) % 3]),
      q: () => ask((state.asked + 1) % data.asked.length), h: () => showHeat(!find("#heat").checked),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  find("#cards").addEventListener("focusin", (event) => rove(event.target.closest(".card")));
  find("#cards").addEventListener("input", (event) => {
    const from = event.target, card = from.closest(".card");
    if (from.classList.contains("border")) find(".stages", card).style.setProperty("--border", from.value + "%");
    else if (from.closest(".epoch")) move(card, Number(from.value));
  });
  const help = find("#help");
  on("#help-open", "click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.key === "?" && !/^(INPUT|SELECT)$/.test(event.target.tagName) && !help.open) help.showModal();
  });

  // ---- light or dark, and paper
  const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const nameTheme = () => (find("#theme").textContent = isDark() ? "Light" : "Dark");
  on("#theme", "click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  addEventListener("beforeprint", () => {
    moveAll(last);
    if (several) setView("side");
    for (const card of stale) draw(card);
    stale.clear();
    for (const each of document.querySelectorAll("details")) each.open = true;
  });

  nameTheme();
  moveAll(last);
  arrange();
  for (const card of cards) watcher.observe(card);
})();
