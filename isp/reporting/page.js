"use strict";
// Sort by a click on a header: numbers by data-value, first descending, then ascending, then in the original order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[table.tBodies.length - 1];
  const original = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  if (original.length < 2) continue;
  headers.forEach((header, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const numeric = header.classList.contains("number");
      const turns = numeric ? ["descending", "ascending", null] : ["ascending", "descending", null];
      const next = turns[(turns.indexOf(header.getAttribute("aria-sort")) + 1) % 3];
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) header.setAttribute("aria-sort", next);
      body.append(...(next ? sorted(original, index, next === "descending", numeric) : original));
    });
  });
}

function sorted(rows, index, descending, numeric) {
  const key = (row) => {
    const cell = row.cells[index];
    if (!numeric) return cell.textContent.trim();
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  return [...rows].sort((one, two) => {
    const [a, b] = [key(one), key(two)];
    if (a === null || b === null) return (a === null) - (b === null); // missing values come last
    const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
    return descending ? -order : order;
  });
}

// Fade the edges of what continues beyond its box, and say so above it.
for (const box of document.querySelectorAll(".scroll, nav ul")) {
  const hint = document.createElement("p");
  hint.className = "hint";
  hint.textContent = "Wider than the screen: scroll sideways →";
  if (box.matches(".scroll")) box.before(hint);
  const update = () => {
    hint.hidden = box.scrollWidth <= box.clientWidth + 1;
    box.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
    box.classList.toggle("more-below", box.scrollTop + box.clientHeight < box.scrollHeight - 1);
  };
  box.addEventListener("scroll", update, { passive: true });
  new ResizeObserver(update).observe(box);
}

// Highlight the current section in the contents.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const seen = new Set();
const observer = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) seen[entry.isIntersecting ? "add" : "delete"](entry.target.id);
    const current = [...links.keys()].find((id) => seen.has(id));
    if (!current) return;
    links.forEach((link, id) => (id === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
    const list = document.querySelector("nav ul"), link = links.get(current);
    if (list.scrollWidth > list.clientWidth) list.scrollLeft = link.offsetLeft - list.offsetLeft - 16;
  },
  { rootMargin: "-15% 0px -70% 0px" },
);
for (const id of links.keys()) observer.observe(document.getElementById(id));

// Unfold everything for printing.
const folded = [...document.querySelectorAll("details:not([open])")];
addEventListener("beforeprint", () => folded.forEach((each) => (each.open = true)));
