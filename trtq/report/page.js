"use strict";
// Without this script the page shows everything but histograms on demand; with it tables sort and filter and the strip tells names.
(() => {
  const numbers = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v !== undefined ? (cell.dataset.v === "" ? NaN : Number(cell.dataset.v)) : cell.textContent.trim().toLowerCase();
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") {
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      return a - b;
    }
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };

  const closeDetails = (table) => {
    for (const row of table.querySelectorAll("tr.detail")) row.remove();
    for (const button of table.querySelectorAll("button.hist")) button.setAttribute("aria-expanded", "false");
  };

  for (const block of document.querySelectorAll("pre.command")) {
    const text = block.textContent.trim();
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "copy";
    button.setAttribute("aria-label", `copy ${text.split("\n")[0]}`);
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(block.querySelector("code"));
        button.textContent = "selected";
      }
    });
    block.append(button);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const label = head.textContent;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.textContent = label;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        closeDetails(table);
        const rows = [...body.rows].map((row) => [value(row, column), row]);
        // Rows without a number remain at the end in both directions.
        rows.sort(([a], [b]) => (Number.isNaN(a) || Number.isNaN(b) ? compare(a, b) : down ? compare(b, a) : compare(a, b)));
        body.replaceChildren(...rows.map(([, row]) => row));
      });
    });
  }

  const selects = (input) => document.querySelectorAll(`select[data-table="${input.dataset.table}"]`);
  const filter = (input) => {
    const table = document.getElementById(input.dataset.table);
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const picked = [...selects(input)].filter((select) => select.value !== "");
    closeDetails(table);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      const fits = (select) => row.cells[Number(select.dataset.column)].textContent.trim() === select.value;
      row.hidden = !words.every((word) => text.includes(word)) || !picked.every(fits);
      shown += !row.hidden;
    }
    document.getElementById(`${input.id}-count`).textContent = `${shown} of ${table.tBodies[0].rows.length} rows`;
  };
  for (const input of document.querySelectorAll("input[data-table]")) {
    input.closest(".tools").hidden = false;
    input.addEventListener("input", () => filter(input));
    for (const select of selects(input)) select.addEventListener("change", () => filter(input));
    filter(input);
  }

  const read = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");
  const histograms = read("histograms");
  const draw = ({ counts, limit, amax, name }) => {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", "0 0 460 150");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Magnitudes of ${name}: 0 to ${numbers.format(limit)}, clipped at ${numbers.format(amax)}; counts on a log scale`);
    const top = Math.log10(Math.max(...counts, 1) + 1);
    const step = 440 / counts.length;
    const add = (tag, attributes, text) => {
      const made = document.createElementNS(space, tag);
      for (const [key, v] of Object.entries(attributes)) made.setAttribute(key, v);
      if (text !== undefined) made.textContent = text;
      svg.append(made);
    };
    const bars = counts.map((count, i) => {
      const height = (110 * Math.log10(count + 1)) / top;
      return height ? `M${(10 + i * step).toFixed(1)} 125h${(step * 0.9).toFixed(2)}v-${height.toFixed(1)}h-${(step * 0.9).toFixed(2)}z` : "";
    });
    add("path", { class: "bars", d: bars.join("") });
    add("path", { class: "base", d: "M10 125h440" });
    const at = 10 + Math.min(1, amax / limit) * 440;
    add("path", { class: "clip", d: `M${at.toFixed(1)} 10v115` });
    add("text", { x: at > 330 ? at - 4 : at + 4, y: 20, class: "clip", "text-anchor": at > 330 ? "end" : "start" }, `amax ${numbers.format(amax)}`);
    add("text", { x: 10, y: 142 }, "0");
    add("text", { x: 450, y: 142, "text-anchor": "end" }, `magnitude ${numbers.format(limit)}`);
    return svg;
  };
  for (const button of document.querySelectorAll("button.hist")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const row = button.closest("tr");
      const open = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!open));
      if (open) {
        row.nextElementSibling.remove();
        return;
      }
      const [counts, limit, amax] = histograms[button.dataset.q];
      const detail = document.createElement("tr");
      detail.className = "detail";
      const cell = detail.insertCell();
      cell.colSpan = row.cells.length;
      cell.append(draw({ counts, limit, amax, name: button.dataset.q }));
      row.after(detail);
    });
  }

  const strip = document.querySelector("svg.strip");
  if (strip) {
    const layers = read("layers");
    const cursor = strip.querySelector(".cursor");
    const said = document.getElementById("strip-said");
    const step = Number(cursor.dataset.step);
    let at = -1;
    const point = (index) => {
      at = Math.max(0, Math.min(layers.length - 1, index));
      cursor.setAttribute("d", `M${at * step} 0h${step}v${cursor.dataset.height}h${-step}z`);
      const [name, precision, sqnr, loss, share] = layers[at];
      const parts = [`${at + 1} of ${layers.length}: ${name}`, precision];
      if (sqnr !== null) parts.push(`${sqnr.toFixed(1)} dB`);
      if (loss !== null) parts.push(`loss ${numbers.format(loss)}`);
      if (share !== null) parts.push(`${(100 * share).toFixed(2)} % of the work`);
      said.textContent = parts.join(", ");
    };
    const frame = strip.parentElement;
    frame.tabIndex = 0;
    frame.setAttribute("aria-describedby", "strip-help");
    strip.addEventListener("pointermove", (event) => {
      const box = strip.getBoundingClientRect();
      point(Math.floor(((event.clientX - box.left) / box.width) * layers.length));
    });
    const find = () => {
      if (at < 0) return;
      const input = document.getElementById("find-layer");
      input.value = layers[at][0];
      filter(input);
      input.scrollIntoView({ block: "center" });
    };
    strip.addEventListener("click", find);
    frame.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1, PageDown: 20, PageUp: -20, Home: -layers.length, End: layers.length }[event.key];
      if (move !== undefined) {
        event.preventDefault();
        point(at + move);
      } else if (event.key === "Enter") find();
    });
  }
})();
