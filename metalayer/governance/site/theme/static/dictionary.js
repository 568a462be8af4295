// Search that forgives typos, the menu on narrow pages, and the choice of light or dark.
"use strict";
(() => {
  const MOST = 12;
  const field = document.getElementById("search");
  const list = document.getElementById("found");
  const records = window.RECORDS;
  const fuse = new window.Fuse(records, {
    keys: [
      { name: "name", weight: 4 },
      { name: "words", weight: 3 },
      { name: "table", weight: 1 },
      { name: "tags", weight: 1 },
      { name: "meaning", weight: 1 },
    ],
    threshold: 0.4,
    ignoreLocation: true,
    includeScore: true,
    minMatchCharLength: 2,
  });

  // Each word is looked for by itself: an entry that has more of them comes first, then the one
  // that has them with fewer typos, then tables before columns.
  function search(text) {
    const words = text.toLowerCase().split(/\s+/).filter((word) => word.length > 1);
    const found = new Map();
    for (const word of words) {
      for (const { refIndex, score } of fuse.search(word)) {
        const entry = found.get(refIndex) || { matched: 0, score: 0 };
        found.set(refIndex, { matched: entry.matched + 1, score: entry.score + score });
      }
    }
    const isColumn = (place) => (records[place].table ? 1 : 0);
    return [...found]
      .sort(([a, x], [b, y]) => y.matched - x.matched
        || Math.round(x.score * 50) - Math.round(y.score * 50) || isColumn(a) - isColumn(b)
        || x.score - y.score)
      .slice(0, MOST)
      .map(([place]) => records[place]);
  }

  function element(tag, text, kind) {
    const made = document.createElement(tag);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  function show() {
    const text = field.value.trim();
    const records = search(text);
    list.replaceChildren(...records.map((record) => {
      const item = document.createElement("li");
      item.setAttribute("role", "option");
      const link = document.createElement("a");
      link.href = record.url;
      link.append(
        element("strong", record.name),
        element("span", record.table ? `column of ${record.table}` : "table", "where"),
        element("span", record.meaning, "meaning"),
      );
      item.append(link);
      return item;
    }));
    if (text.length > 1 && !records.length) list.append(element("li", `Nothing is like “${text}”.`, "none"));
    list.hidden = text.length < 2;
    field.setAttribute("aria-expanded", String(!list.hidden));
    choose(0);
  }

  function choose(place) {
    const items = [...list.querySelectorAll("[role=option]")];
    items.forEach((item, number) => item.setAttribute("aria-selected", String(number === place)));
    items[place]?.scrollIntoView({ block: "nearest" });
  }

  function hide() {
    list.hidden = true;
    field.setAttribute("aria-expanded", "false");
  }

  field.addEventListener("input", show);
  field.addEventListener("focus", () => field.value && show());
  field.addEventListener("keydown", (event) => {
    const items = [...list.querySelectorAll("[role=option]")];
    const at = items.findIndex((item) => item.getAttribute("aria-selected") === "true");
    if (event.key === "ArrowDown") choose(Math.min(at + 1, items.length - 1));
    else if (event.key === "ArrowUp") choose(Math.max(at - 1, 0));
    else if (event.key === "Enter" && items[at]) { items[at].querySelector("a").click(); hide(); }
    else if (event.key === "Escape") { hide(); field.blur(); }
    else return;
    event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest(".search") || event.target.closest("#found a")) hide();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && event.target === document.body) {
      field.focus();
      event.preventDefault();
    }
  });

  const menu = document.getElementById("menu");
  menu.addEventListener("click", () => {
    const isOpen = document.body.classList.toggle("menu");
    menu.setAttribute("aria-expanded", String(isOpen));
  });

  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const isDark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch (e) { /* no storage, this page only */ }
  });

  // A picture wider than the page begins where the marked column is.
  function centre(graph) {
    const here = graph.querySelector(".here");
    if (here && graph.scrollWidth > graph.clientWidth) {
      const box = here.getBBox();
      graph.scrollLeft = box.x + box.width / 2 - graph.clientWidth / 2;
    }
  }
  document.querySelectorAll(".graph").forEach(centre);
  document.querySelectorAll("details.lineage").forEach((details) => {
    details.addEventListener("toggle", () => details.open && centre(details.querySelector(".graph")));
  });

  // Whoever follows a link to a column wants to see its lineage.
  function open() {
    const section = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const details = section && section.closest("section")?.querySelector(":scope > details.lineage");
    if (details) details.open = true;
  }
  addEventListener("hashchange", open);
  open();
})();
