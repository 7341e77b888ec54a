"use strict";
// Draws the samples of an evaluation report from the data beside it, and sorts its tables.
// Words from outside only ever become text nodes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 12, ENDS = 6;
  const byId = (id) => document.getElementById(id);
  const family = byId("family"), order = byId("order"), metric = byId("metric"), run = byId("run");
  const list = byId("list"), status = byId("status"), more = byId("more"), whole = byId("whole");

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  const figure = (value) => (Math.abs(value) < 10 ? value.toFixed(3) : value.toFixed(2));

  // Images

  const blocks = new Map();
  function source(number) {
    const block = Math.floor(number / data.block);
    if (!blocks.has(block)) blocks.set(block, byId("images-" + block).textContent.split("\n"));
    return "data:image/jpeg;base64," + blocks.get(block)[number % data.block];
  }

  function image(number, words) {
    const size = data.sizes[number];
    if (typeof size === "string") return make("div", { class: "blank", role: "img", "aria-label": words + ": " + size }, size);
    return make("img", { src: source(number), alt: words, title: words, width: size[0], height: size[1], decoding: "async" });
  }

  function reference(number, place) {
    const size = data.sizes[number];
    const aspect = typeof size === "string" ? 1 : Math.min(3, Math.max(0.4, size[0] / size[1]));
    const shape = make("figure", { class: "thumb" }, image(number, "reference " + place), make("span", { class: "badge", "aria-hidden": "true" }, place));
    shape.style.flex = aspect + " 1 0";
    shape.style.maxWidth = Math.round(aspect * 116) + "px";
    return shape;
  }

  function outcome(number, words, caption, kind) {
    return make("figure", { class: "outcome " + kind }, image(number, words), make("figcaption", {}, caption));
  }

  // Cards

  function instruction(parts) {
    return make("p", { class: "instruction" }, ...parts.map((part) => {
      if (typeof part === "string") return part;
      if (typeof part === "number") return make("b", { class: "place" }, "image\u00a0" + part);
      return make("b", { class: "token t-" + part[0] }, part[0]);
    }));
  }

  function scores(item) {
    const used = data.metrics.map((_, place) => place).filter((place) => item[6].some((entry) => entry && (place in entry[3] || place in entry[4])));
    if (!used.length) return null;
    const head = make("tr", {}, make("td", {}), ...data.runs.map((name) => make("th", { scope: "col", class: "n" }, name)));
    const rows = used.map((place) => make("tr", {}, make("th", { scope: "row" }, data.metrics[place][0]), ...item[6].map((entry) => {
      if (entry && place in entry[3]) return make("td", { class: "n" }, figure(entry[3][place]));
      if (entry && place in entry[4]) return make("td", { class: "n failed", title: entry[4][place] }, "failed");
      return make("td", { class: "n" }, "–");
    })));
    return make("table", { class: "scores" }, data.runs.length > 1 ? make("thead", {}, head) : null, make("tbody", {}, ...rows));
  }

  function answers(item) {
    const shapes = [], words = [];
    if (item[4] >= 0) shapes.push(outcome(item[4], "reference answer", "reference answer", "target"));
    if (item[5] !== null) words.push(make("p", { class: "words target" }, make("small", {}, "right answer"), item[5]));
    item[6].forEach((entry, place) => {
      const name = data.runs[place];
      if (!entry) return words.push(make("p", { class: "words" }, make("small", {}, name), "not asked"));
      if (entry[0] >= 0) shapes.push(outcome(entry[0], "output of " + name, name, "output"));
      if (entry[1] !== null) words.push(make("p", { class: "words" }, make("small", {}, name), entry[1] || "(nothing)"));
      if (entry[2] !== null) words.push(make("p", { class: "words failed" }, make("small", {}, name + " failed"), entry[2]));
      for (const [which, reason] of Object.entries(entry[4])) {
        const title = name + ", " + data.metrics[which][0];
        if (which in entry[3]) words.push(make("p", { class: "words" }, make("small", {}, title), reason));
        else words.push(make("p", { class: "words failed" }, make("small", {}, title + " failed"), reason));
      }
    });
    return [shapes.length ? make("div", { class: "outcomes" }, ...shapes) : null, ...words];
  }

  function card(item) {
    return make("article", { class: "card" },
      item[3].length ? make("div", { class: "images" }, ...item[3].map((number, place) => reference(number, place + 1))) : null,
      instruction(item[2]), ...answers(item), scores(item), make("p", { class: "meta" }, item[0]));
  }

  // Order

  const value = (item, place, which) => (item[6][place] ? item[6][place][3][which] : undefined);
  const broken = (item) => item[6].some((entry) => entry && (entry[2] !== null || Object.keys(entry[4]).some((which) => !(which in entry[3]))));

  // Groups of [heading, items] as the controls ask.
  function groups() {
    const items = data.items.filter((item) => item[1] === Number(family.value));
    const which = Number(metric.value), place = Number(run.value);
    if (order.value === "failed") return [["", items.filter(broken)]];
    if (order.value === "asked" || which < 0) return [["", items]];
    const sign = data.metrics[which][1] === "down" ? -1 : 1;
    const change = order.value === "gains" || order.value === "losses";
    const key = (item) => change ? value(item, place, which) - value(item, 0, which) : value(item, place, which);
    const keyed = items.map((item) => [item, sign * key(item)]);
    const known = keyed.filter((pair) => !Number.isNaN(pair[1])).sort((a, b) => b[1] - a[1]).map((pair) => pair[0]);
    const rest = ["Without this score", keyed.filter((pair) => Number.isNaN(pair[1])).map((pair) => pair[0])];
    if (order.value === "ends" && known.length > 2 * ENDS) return [["Best", known.slice(0, ENDS)], ["Worst", known.slice(-ENDS).reverse()]];
    if (order.value === "worst" || order.value === "losses") known.reverse();
    return [["", known], rest].filter((group) => group[1].length);
  }

  // List: a page at a time, the next when its end comes near or the button is pressed.

  let queue = [], shown = 0, total = 0;
  function draw() {
    let room = PAGE;
    while (room > 0 && queue.length) {
      const [heading, items] = queue[0];
      let cards = list.lastElementChild;
      if (!cards || cards.group !== queue[0]) {
        if (heading) list.append(make("h3", {}, heading));
        cards = make("div", { class: "cards" });
        cards.group = queue[0];
        cards.taken = 0;
        list.append(cards);
      }
      const next = items.slice(cards.taken, cards.taken + room);
      cards.append(...next.map(card));
      cards.taken += next.length;
      shown += next.length;
      room -= next.length;
      if (cards.taken >= items.length) queue.shift();
    }
    more.hidden = !queue.length;
    const count = data.items.filter((item) => item[1] === Number(family.value)).length;
    status.textContent = total ? shown + " of " + count + " samples shown" : "No such sample among " + count;
  }

  function start() {
    list.replaceChildren();
    queue = groups();
    total = queue.reduce((sum, group) => sum + group[1].length, 0);
    shown = 0;
    const ends = order.value === "ends" && queue.some((group) => group[0] === "Worst");
    draw();
    whole.hidden = !ends;
  }

  function choose() {
    const inside = data.items.filter((item) => item[1] === Number(family.value));
    const used = data.metrics.map((_, place) => place).filter((which) => inside.some((item) => item[6].some((entry) => entry && which in entry[3])));
    const before = metric.value, main = data.main[Number(family.value)];
    metric.replaceChildren(...used.map((which) => make("option", { value: which }, data.metrics[which][0])));
    if (!used.length) metric.append(make("option", { value: -1 }, "none"));
    if (used.includes(main)) metric.value = main;
    else if (used.includes(Number(before))) metric.value = before;
    start();
  }

  family.addEventListener("change", choose);
  for (const control of [order, metric, run]) control.addEventListener("change", start);
  more.addEventListener("click", () => {
    const last = list.lastElementChild, at = last.childElementCount;
    draw();
    const next = last.children[at] || (last.nextElementSibling && list.lastElementChild.firstElementChild);
    if (next) { next.tabIndex = -1; next.focus({ preventScroll: true }); }
  });
  whole.addEventListener("click", () => { order.value = "worst"; start(); order.focus(); });
  for (const link of document.querySelectorAll("a[data-family]")) {
    link.addEventListener("click", () => { family.value = link.dataset.family; choose(); });
  }
  new IntersectionObserver((entries) => {
    // Never under the hands of whoever is about to press the button.
    if (entries.some((entry) => entry.isIntersecting) && scrollY > 0 && document.activeElement !== more) draw();
  }, { rootMargin: "600px" }).observe(more);

  // Tables

  function sort(button) {
    const heading = button.closest("th"), body = heading.closest("table").tBodies[0], column = heading.cellIndex;
    const up = heading.getAttribute("aria-sort") === "descending";
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value;
    const words = body.rows.length && "words" in heading.dataset;
    const rows = [...body.rows].sort((a, b) => {
      const one = key(a), two = key(b);
      if (one === "" || two === "") return (one === "") - (two === ""); // what has no value stays below
      const more = words ? two.localeCompare(one) : two - one;
      return up ? -more : more;
    });
    body.append(...rows);
  }
  for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => sort(button));

  choose();
})();
