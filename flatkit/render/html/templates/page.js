"use strict";
// Sorts tables, switches light and dark, enlarges figures, copies commands. Without it the page
// still shows everything.
(() => {
  const root = document.documentElement;

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => {
        const cell = row.cells[column], number = cell.dataset.number;
        return { row, number: number === undefined ? null : Number(number.replace("inf", "Infinity")), text: cell.textContent };
      });
      const sign = down ? -1 : 1;
      // Numbers as numbers; a cell without one stands at the end, whichever way.
      const anyNumber = rows.some((one) => one.number !== null);
      rows.sort((a, b) => {
        if (!anyNumber) return sign * a.text.localeCompare(b.text);
        if (a.number === null || b.number === null) return (a.number === null) - (b.number === null);
        return sign * (a.number < b.number ? -1 : a.number > b.number ? 1 : 0);
      });
      rows.forEach((one) => body.append(one.row));
    }));
  }

  const theme = document.getElementById("theme"), dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  const name = () => { theme.textContent = isDark() ? "Light" : "Dark"; dispatchEvent(new Event("recolour")); };
  theme.hidden = false;
  theme.setAttribute("aria-label", "Switch between light and dark");
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });
  dark.addEventListener("change", name);
  name();

  const dialog = document.getElementById("large");
  for (const button of document.querySelectorAll("button.enlarge")) {
    button.hidden = false;
    button.setAttribute("aria-label", "Enlarge: " + button.closest("figcaption").firstChild.textContent.trim());
    button.addEventListener("click", () => {
      const drawn = button.closest("figure").querySelector(".drawn"), room = dialog.querySelector("div");
      // The drawing itself moves, as two of one name would take each other's parts.
      const svg = drawn.firstElementChild, back = document.createComment("");
      svg.replaceWith(back);
      room.style.width = `max(${drawn.style.getPropertyValue("--width")}, 86vw)`;
      room.append(svg);
      dialog.showModal();
      dialog.addEventListener("close", () => { back.replaceWith(svg); button.focus(); }, { once: true });
    });
  }

  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code); // a browser that does not allow it: one key is left
        button.textContent = "Selected: press Ctrl+C";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2500);
    });
  }

  const closed = [];
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details:not([open]):not(.settings)")) {
      one.open = true;
      closed.push(one);
    }
  });
  addEventListener("afterprint", () => closed.splice(0).forEach((one) => { one.open = false; }));
})();
