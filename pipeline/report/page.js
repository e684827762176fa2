"use strict";
// Filters, sorts and points things out in what the page holds; it adds nothing but plain text.

function setUpRows(section) {
  const body = section.querySelector("tbody");
  const rows = Array.from(body.rows);
  const label = section.querySelector("select");
  const search = section.querySelector("input");
  const count = section.querySelector("output");
  const none = section.querySelector(".none");
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  function filter() {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = (label.value === "" || row.dataset.label === label.value)
        && words.get(row).includes(wanted);
      row.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    count.value = `${shown} of ${rows.length} ${rows.length === 1 ? "text" : "texts"} shown`;
    none.hidden = shown > 0;
  }

  function sort(heading) {
    const column = heading.cellIndex;
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentNode.cells) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    }
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const order = new Intl.Collator(undefined, { numeric: false });
    rows.sort((one, other) => {
      const a = key(one), b = key(other);
      const by = a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : order.compare(a, b);
      return down ? -by : by;
    });
    body.append(...rows);
  }

  label.addEventListener("change", filter);
  search.addEventListener("input", filter);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { search.value = ""; filter(); }
  });
  for (const button of section.querySelectorAll("thead button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
  // A reload may have kept what was chosen before it.
  filter();
}

function setUpChart(chart, tip) {
  const left = (mark) => mark.getBoundingClientRect().left;
  let at = null;

  // Of the drawing that is shown: the one for phones, or the other.
  function inOrder() {
    return Array.from(chart.querySelectorAll(".mark"))
      .filter((mark) => mark.getClientRects().length)
      .sort((one, other) => left(one) - left(other));
  }

  function show(mark) {
    if (at) at.classList.remove("at");
    at = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("at");
    tip.textContent = mark.getAttribute("aria-label");
    const box = mark.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const x = Math.min(Math.max(box.left + box.width / 2 - size.width / 2, 8),
      document.documentElement.clientWidth - size.width - 8);
    const above = box.top - size.height - 6;
    tip.style.left = `${x}px`;
    tip.style.top = `${above < 4 ? box.bottom + 6 : above}px`;
  }

  chart.addEventListener("mousemove", (event) => {
    const mark = event.target.closest(".mark");
    if (mark !== at) show(mark);
  });
  chart.addEventListener("mouseleave", () => show(null));
  chart.addEventListener("blur", () => show(null));
  chart.addEventListener("keydown", (event) => {
    const order = inOrder();
    const place = order.indexOf(at);
    const to = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: Math.max(place - 1, 0),
      ArrowUp: Math.max(place - 1, 0), Home: 0, End: order.length - 1 }[event.key];
    if (event.key === "Escape") show(null);
    if (to === undefined || !order.length) return;
    event.preventDefault();
    show(order[Math.min(to, order.length - 1)]);
  });
}

const tip = document.getElementById("tip");
document.querySelectorAll(".chart").forEach((chart) => setUpChart(chart, tip));
document.querySelectorAll(".rows").forEach(setUpRows);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
// A page that follows a run. The header `Refresh` would scroll it back to the top.
const { reloadS } = document.body.dataset;
if (reloadS) setTimeout(() => location.reload(), 1000 * Number(reloadS));
